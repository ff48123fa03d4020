-- The books of one fee. Amounts are whole millionths of a currency's minor unit, times are milliseconds since
-- 1970 (UTC), periods are months as YYYYMM. 64-bit unsigned facts (bytes, times, numbers of records) are stored
-- as the signed integer of the same bits.
--
-- The database itself refuses what must never happen: an unbalanced journal, a posting added to a journal that
-- is closed, a posting without a journal, a journal dated into a closed period, a change or deletion of
-- anything that was booked, and money that is not an integer.

-- One chain of records: a node's log in one epoch. The head is what is booked so far.
CREATE TABLE chains (
    id          INTEGER PRIMARY KEY,
    node        TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL,
    last_digest BLOB    NOT NULL CHECK (length(last_digest) = 32),
    UNIQUE (node, epoch)
) STRICT;

-- The facts of every delivery record, as received, and what rating made of them on arrival.
CREATE TABLE events (
    id            INTEGER PRIMARY KEY,
    chain         INTEGER NOT NULL REFERENCES chains (id),
    seq           INTEGER NOT NULL,
    digest        BLOB    NOT NULL CHECK (length(digest) = 32),
    delivery      BLOB    NOT NULL CHECK (length(delivery) = 16),
    begin_ms      INTEGER NOT NULL,
    end_ms        INTEGER NOT NULL,
    client        TEXT    NOT NULL,
    content       TEXT    NOT NULL,
    hash          BLOB    NOT NULL CHECK (length(hash) = 32),
    provider      TEXT    NOT NULL,
    class         TEXT    NOT NULL CHECK (class IN ('purchase', 'reference')),
    path          TEXT    NOT NULL CHECK (path IN ('hit', 'peer', 'origin')),
    home          TEXT    NOT NULL,
    source_site   TEXT,
    source_origin TEXT,
    searched      INTEGER NOT NULL CHECK (searched IN (0, 1)),
    surrogate     TEXT,
    mobile_access TEXT,
    status        TEXT    NOT NULL CHECK (status IN ('complete', 'partial', 'void', 'recovered')),
    bytes_total   INTEGER NOT NULL,
    bytes_sent    INTEGER NOT NULL,
    -- The month of the delivery, and the month it was booked in: a later one if its own was closed.
    usage_period  INTEGER NOT NULL,
    booked_period INTEGER NOT NULL,
    outcome       TEXT    NOT NULL CHECK (outcome IN ('charged', 'free', 'unbilled', 'exception')),
    -- The journal of a charge; NULL for every other outcome. Journals are inserted before their events: a
    -- deferred reference without an index would scan this table for each new journal.
    journal       INTEGER REFERENCES journals (id),
    CHECK ((outcome = 'charged') = (journal IS NOT NULL)),
    UNIQUE (chain, seq)
) STRICT;
CREATE INDEX events_by_client ON events (client, booked_period);
CREATE INDEX events_by_delivery ON events (delivery);

CREATE TABLE accounts (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    currency TEXT NOT NULL,
    UNIQUE (name, currency)
) STRICT;

-- A journal is closed by its own row, which comes after its postings.
CREATE TABLE journals (
    id        INTEGER PRIMARY KEY,
    kind      TEXT    NOT NULL CHECK (kind IN ('delivery', 'invoice')),
    -- The event that is charged; checked by `GET /v1/verify`.
    event     INTEGER,
    period    INTEGER NOT NULL,
    currency  TEXT    NOT NULL,
    -- Versions that the charge was computed under.
    tariff    INTEGER REFERENCES tariffs (version),
    split     INTEGER REFERENCES splits (version),
    reference TEXT,
    CHECK ((kind = 'delivery') = (event IS NOT NULL AND tariff IS NOT NULL AND split IS NOT NULL))
) STRICT;

-- Debits are positive. `role` says what the party did for its share.
CREATE TABLE postings (
    journal INTEGER NOT NULL REFERENCES journals (id) DEFERRABLE INITIALLY DEFERRED,
    line    INTEGER NOT NULL,
    account INTEGER NOT NULL REFERENCES accounts (id),
    role    TEXT    NOT NULL,
    amount  INTEGER NOT NULL CHECK (typeof(amount) = 'integer' AND amount <> 0),
    PRIMARY KEY (journal, line)
) STRICT, WITHOUT ROWID;

-- Always the sums of the postings.
CREATE TABLE balances (
    account INTEGER PRIMARY KEY REFERENCES accounts (id),
    amount  INTEGER NOT NULL CHECK (typeof(amount) = 'integer')
) STRICT;

-- Sums over the events, from which usage and invoices are read.
CREATE TABLE usage (
    client        TEXT    NOT NULL,
    booked_period INTEGER NOT NULL,
    usage_period  INTEGER NOT NULL,
    outcome       TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    class         TEXT    NOT NULL,
    path          TEXT    NOT NULL,
    -- Empty where nothing was charged.
    currency      TEXT    NOT NULL,
    deliveries    INTEGER NOT NULL,
    bytes_sent    INTEGER NOT NULL,
    amount        INTEGER NOT NULL CHECK (typeof(amount) = 'integer'),
    PRIMARY KEY (client, booked_period, usage_period, outcome, status, class, path, currency)
) STRICT, WITHOUT ROWID;

-- Records that could not be rated on arrival; rated again when tariffs or splits are added.
CREATE TABLE exceptions (
    event            INTEGER PRIMARY KEY REFERENCES events (id),
    reason           TEXT NOT NULL,
    resolved_outcome TEXT,
    resolved_period  INTEGER,
    journal          INTEGER REFERENCES journals (id)
) STRICT;
CREATE INDEX exceptions_open ON exceptions (event) WHERE resolved_outcome IS NULL;
CREATE INDEX exceptions_resolved ON exceptions (resolved_period) WHERE resolved_outcome IS NOT NULL;

-- Records that contradict what is booked. Nothing of them is in the books.
CREATE TABLE quarantine (
    id          INTEGER PRIMARY KEY,
    node        TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    digest      BLOB    NOT NULL,
    record      TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    received_ms INTEGER NOT NULL,
    UNIQUE (node, epoch, seq, digest)
) STRICT;

-- Versions: each holds from `valid_from` (half-open) until the next.
CREATE TABLE tariffs (
    version    INTEGER PRIMARY KEY,
    valid_from INTEGER NOT NULL UNIQUE,
    document   TEXT    NOT NULL,
    stored_ms  INTEGER NOT NULL
) STRICT;
CREATE TABLE splits (
    version    INTEGER PRIMARY KEY,
    valid_from INTEGER NOT NULL UNIQUE,
    document   TEXT    NOT NULL,
    stored_ms  INTEGER NOT NULL
) STRICT;
CREATE TABLE parties (
    party      TEXT    NOT NULL,
    valid_from INTEGER NOT NULL,
    document   TEXT    NOT NULL,
    stored_ms  INTEGER NOT NULL,
    PRIMARY KEY (party, valid_from)
) STRICT, WITHOUT ROWID;

-- Closed months. Closing one closes all before it.
CREATE TABLE periods (
    period    INTEGER PRIMARY KEY,
    closed_ms INTEGER NOT NULL
) STRICT;

-- Numbers count from 1 without gaps. The document is what was issued, to the byte.
CREATE TABLE invoices (
    number       INTEGER PRIMARY KEY,
    period       INTEGER NOT NULL,
    -- Charges booked from this month on are on this invoice.
    first_period INTEGER NOT NULL,
    client       TEXT    NOT NULL,
    currency     TEXT    NOT NULL,
    journal      INTEGER NOT NULL UNIQUE REFERENCES journals (id),
    document     TEXT    NOT NULL,
    UNIQUE (period, client, currency)
) STRICT;

CREATE TRIGGER journals_balance BEFORE INSERT ON journals
WHEN coalesce((SELECT count(*) FROM postings WHERE journal = NEW.id), 0) < 2
    OR EXISTS (
        SELECT 1 FROM postings p JOIN accounts a ON a.id = p.account
        WHERE p.journal = NEW.id GROUP BY a.currency HAVING sum(p.amount) <> 0
    )
BEGIN SELECT RAISE(ABORT, 'the journal does not sum to zero'); END;

CREATE TRIGGER journals_not_into_a_closed_period BEFORE INSERT ON journals
WHEN NEW.period <= (SELECT max(period) FROM periods)
BEGIN SELECT RAISE(ABORT, 'the period is closed'); END;

CREATE TRIGGER postings_not_into_a_closed_journal BEFORE INSERT ON postings
WHEN EXISTS (SELECT 1 FROM journals WHERE id = NEW.journal)
BEGIN SELECT RAISE(ABORT, 'the journal is closed'); END;

CREATE TRIGGER events_keep BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TRIGGER journals_keep BEFORE UPDATE ON journals
BEGIN SELECT RAISE(ABORT, 'journals are never changed'); END;
CREATE TRIGGER journals_stay BEFORE DELETE ON journals
BEGIN SELECT RAISE(ABORT, 'journals are never deleted'); END;
CREATE TRIGGER postings_keep BEFORE UPDATE ON postings
BEGIN SELECT RAISE(ABORT, 'postings are never changed'); END;
CREATE TRIGGER postings_stay BEFORE DELETE ON postings
BEGIN SELECT RAISE(ABORT, 'postings are never deleted'); END;
CREATE TRIGGER accounts_keep BEFORE UPDATE OF name, currency ON accounts
WHEN OLD.name <> NEW.name OR OLD.currency <> NEW.currency
BEGIN SELECT RAISE(ABORT, 'accounts are never changed'); END;
CREATE TRIGGER accounts_stay BEFORE DELETE ON accounts
BEGIN SELECT RAISE(ABORT, 'accounts are never deleted'); END;
CREATE TRIGGER tariffs_keep BEFORE UPDATE ON tariffs
BEGIN SELECT RAISE(ABORT, 'tariffs are never changed'); END;
CREATE TRIGGER tariffs_stay BEFORE DELETE ON tariffs
BEGIN SELECT RAISE(ABORT, 'tariffs are never deleted'); END;
CREATE TRIGGER splits_keep BEFORE UPDATE ON splits
BEGIN SELECT RAISE(ABORT, 'splits are never changed'); END;
CREATE TRIGGER splits_stay BEFORE DELETE ON splits
BEGIN SELECT RAISE(ABORT, 'splits are never deleted'); END;
CREATE TRIGGER parties_keep BEFORE UPDATE ON parties
BEGIN SELECT RAISE(ABORT, 'parties are never changed'); END;
CREATE TRIGGER parties_stay BEFORE DELETE ON parties
BEGIN SELECT RAISE(ABORT, 'parties are never deleted'); END;
CREATE TRIGGER periods_keep BEFORE UPDATE ON periods
BEGIN SELECT RAISE(ABORT, 'a closed period stays closed'); END;
CREATE TRIGGER periods_stay BEFORE DELETE ON periods
BEGIN SELECT RAISE(ABORT, 'a closed period stays closed'); END;
CREATE TRIGGER invoices_keep BEFORE UPDATE ON invoices
BEGIN SELECT RAISE(ABORT, 'invoices are never changed'); END;
CREATE TRIGGER invoices_stay BEFORE DELETE ON invoices
BEGIN SELECT RAISE(ABORT, 'invoices are never deleted'); END;
CREATE TRIGGER exceptions_resolve_once BEFORE UPDATE ON exceptions
WHEN OLD.resolved_outcome IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the exception is resolved'); END;
CREATE TRIGGER exceptions_stay BEFORE DELETE ON exceptions
BEGIN SELECT RAISE(ABORT, 'exceptions are never deleted'); END;
