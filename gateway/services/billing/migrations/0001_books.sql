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
    -- Every delivery of the node that began before this is booked, as the node said; 0 if it never did.
    passed_ms   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (node, epoch)
) STRICT;

CREATE TABLE accounts (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    currency TEXT NOT NULL,
    UNIQUE (name, currency)
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

-- A journal is closed by its own row, which comes after its postings. One of kind `deliveries` is the sum of the
-- charges that one transaction booked into one month; its events name it. `digest` links it to the journal before.
CREATE TABLE journals (
    id        INTEGER PRIMARY KEY,
    kind      TEXT    NOT NULL CHECK (kind IN ('deliveries', 'correction', 'discount', 'invoice', 'credit_note', 'payout', 'payment')),
    period    INTEGER NOT NULL,
    currency  TEXT    NOT NULL,
    -- What it is about: the number of a document, the event that is corrected. Empty for deliveries.
    reference TEXT    NOT NULL,
    booked_ms INTEGER NOT NULL,
    digest    BLOB    NOT NULL CHECK (length(digest) = 32)
) STRICT;

-- Debits are positive. (Foreign keys of rows that come by the thousand are checked by the statement on PostgreSQL, by triggers:
-- by the row they would cost more than all else.)
CREATE TABLE postings (
    journal INTEGER NOT NULL REFERENCES journals (id) DEFERRABLE INITIALLY DEFERRED,
    line    INTEGER NOT NULL,
    account INTEGER NOT NULL,
    amount  INTEGER NOT NULL CHECK (amount <> 0),
-- only sqlite
    FOREIGN KEY (account) REFERENCES accounts (id),
-- both
    PRIMARY KEY (journal, line)
) STRICT, WITHOUT ROWID;

-- Always the sums of the postings.
CREATE TABLE balances (
    account INTEGER PRIMARY KEY REFERENCES accounts (id),
    amount  INTEGER NOT NULL
) STRICT;

-- The facts of every delivery record, as received, and what rating made of them on arrival.
CREATE TABLE events (
    id            INTEGER PRIMARY KEY,
    chain         INTEGER NOT NULL,
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
    -- Of a charge: the versions that it was computed under, and the journal that it is in.
    tariff        INTEGER,
    split         INTEGER,
    currency      TEXT,
    amount        INTEGER,
    journal       INTEGER,
    CHECK ((outcome = 'charged') = (tariff IS NOT NULL AND split IS NOT NULL AND currency IS NOT NULL
        AND amount IS NOT NULL AND journal IS NOT NULL)),
-- only sqlite
    FOREIGN KEY (chain) REFERENCES chains (id),
    FOREIGN KEY (journal) REFERENCES journals (id),
-- both
    UNIQUE (chain, seq)
) STRICT;
CREATE INDEX events_by_delivery ON events (delivery);

-- The events of each client, in runs: a run is the events after the run before up to the one it is named after, by
-- client. Runs are only ever added at the end, so booking costs the same however many events there are; a client's
-- events cost one look at each run. The newest events are in no run yet.
CREATE TABLE client_runs (
    run          INTEGER PRIMARY KEY,
    -- The months that its events were booked in.
    first_period INTEGER NOT NULL,
    last_period  INTEGER NOT NULL
) STRICT;
CREATE TABLE client_events (
    run    INTEGER NOT NULL,
    client TEXT    NOT NULL,
    event  INTEGER NOT NULL,
    PRIMARY KEY (run, client, event)
) STRICT, WITHOUT ROWID;

-- Sums over the events up to `usage_through.event`, from which usage and invoices are read. Many events are summed
-- together: when there are enough of them, and before sums are read.
CREATE TABLE usage_through (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    event INTEGER NOT NULL
) STRICT;
INSERT INTO usage_through (id, event) VALUES (1, 0);
CREATE TABLE usage (
    client        TEXT    NOT NULL,
    booked_period INTEGER NOT NULL,
    usage_period  INTEGER NOT NULL,
    -- As of events; `corrected` counts what was charged and taken back before it was invoiced, `credited` after.
    outcome       TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    class         TEXT    NOT NULL,
    path          TEXT    NOT NULL,
    -- Empty and 0 where nothing was charged.
    currency      TEXT    NOT NULL,
    tariff        INTEGER NOT NULL,
    deliveries    INTEGER NOT NULL,
    bytes_sent    INTEGER NOT NULL,
    amount        INTEGER NOT NULL,
    PRIMARY KEY (client, booked_period, usage_period, outcome, status, class, path, currency, tariff)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_period ON usage (booked_period, client);

-- Sums over the shares, from which statements are read.
CREATE TABLE earnings (
    party         TEXT    NOT NULL,
    booked_period INTEGER NOT NULL,
    usage_period  INTEGER NOT NULL,
    -- 'usage', 'correction' or 'discount'
    kind          TEXT    NOT NULL,
    -- What the party did for its share.
    part          TEXT    NOT NULL,
    class         TEXT    NOT NULL,
    path          TEXT    NOT NULL,
    currency      TEXT    NOT NULL,
    deliveries    INTEGER NOT NULL,
    amount        INTEGER NOT NULL,
    PRIMARY KEY (party, booked_period, usage_period, kind, part, class, path, currency)
) STRICT, WITHOUT ROWID;

-- Records that could not be rated on arrival; rated again when tariffs or splits are added.
CREATE TABLE exceptions (
    event            INTEGER PRIMARY KEY REFERENCES events (id),
    reason           TEXT NOT NULL,
    resolved_outcome TEXT,
    resolved_period  INTEGER,
    tariff           INTEGER,
    split            INTEGER,
    currency         TEXT,
    amount           INTEGER,
    journal          INTEGER
) STRICT;
CREATE INDEX exceptions_open ON exceptions (event) WHERE resolved_outcome IS NULL;
CREATE INDEX exceptions_resolved ON exceptions (resolved_period) WHERE resolved_outcome IS NOT NULL;
CREATE INDEX exceptions_by_journal ON exceptions (journal, event) WHERE journal IS NOT NULL;

-- Charges that were taken back: each once, under the versions of the charge.
CREATE TABLE corrections (
    event       INTEGER PRIMARY KEY REFERENCES events (id),
    journal     INTEGER NOT NULL,
    reason      TEXT    NOT NULL,
    booked_ms   INTEGER NOT NULL,
    -- The invoice that the charge is on, if it was invoiced by then, and the credit note that takes it back.
    invoice     INTEGER,
    credit_note INTEGER
) STRICT;
CREATE INDEX corrections_by_invoice ON corrections (invoice);

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

-- Closed months. Closing one closes all before it. `seal` is a digest over the seal before, the newest journal's
-- digest and all documents of the month.
CREATE TABLE periods (
    period    INTEGER PRIMARY KEY,
    closed_ms INTEGER NOT NULL,
    journals  INTEGER NOT NULL,
    -- Nodes whose log was not known to have passed the month's end, as a JSON list.
    missing   TEXT    NOT NULL,
    seal      BLOB    NOT NULL CHECK (length(seal) = 32)
) STRICT;

-- Invoices and credit notes. Numbers count from 1 without gaps, over both. The document is what was issued, to the
-- byte.
CREATE TABLE invoices (
    number       INTEGER PRIMARY KEY,
    kind         TEXT    NOT NULL CHECK (kind IN ('invoice', 'credit_note')),
    -- Of a credit note: the invoice.
    credits      INTEGER REFERENCES invoices (number),
    period       INTEGER NOT NULL,
    -- Charges booked from this month on are on this invoice.
    first_period INTEGER NOT NULL,
    client       TEXT    NOT NULL,
    currency     TEXT    NOT NULL,
    total_minor  INTEGER NOT NULL,
    journal      INTEGER,
    document     TEXT    NOT NULL,
    CHECK ((kind = 'credit_note') = (credits IS NOT NULL))
) STRICT;
CREATE INDEX invoices_by_client ON invoices (client, period);
CREATE INDEX invoices_by_period ON invoices (period);
CREATE INDEX invoices_credited ON invoices (credits);

-- What a party earned in a closed month, and what of it is paid out. Those with a payout have a number.
CREATE TABLE statements (
    party        TEXT    NOT NULL,
    period       INTEGER NOT NULL,
    currency     TEXT    NOT NULL,
    number       INTEGER UNIQUE,
    payout_minor INTEGER NOT NULL,
    method       TEXT    NOT NULL CHECK (method IN ('bank', 'wallet', '')),
    closing      INTEGER NOT NULL,
    journal      INTEGER,
    document     TEXT    NOT NULL,
    PRIMARY KEY (party, period, currency)
) STRICT, WITHOUT ROWID;
CREATE INDEX statements_by_period ON statements (period);

-- Money that came in for an invoice. `reference` is the bank's or the operator's; each counts once.
CREATE TABLE payments (
    reference TEXT    PRIMARY KEY,
    invoice   INTEGER NOT NULL REFERENCES invoices (number),
    minor     INTEGER NOT NULL CHECK (minor > 0),
    paid_ms   INTEGER NOT NULL,
    journal   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX payments_by_invoice ON payments (invoice);

-- Answers to requests that named a key: the same request again gets the same answer.
CREATE TABLE requests (
    idempotency_key TEXT    PRIMARY KEY,
    digest          BLOB    NOT NULL,
    answer          TEXT    NOT NULL,
    booked_ms       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- only sqlite
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
CREATE TRIGGER accounts_keep BEFORE UPDATE ON accounts
BEGIN SELECT RAISE(ABORT, 'accounts are never changed'); END;
CREATE TRIGGER accounts_stay BEFORE DELETE ON accounts
BEGIN SELECT RAISE(ABORT, 'accounts are never deleted'); END;
CREATE TRIGGER balances_stay BEFORE DELETE ON balances
BEGIN SELECT RAISE(ABORT, 'balances are never deleted'); END;
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
CREATE TRIGGER statements_keep BEFORE UPDATE ON statements
BEGIN SELECT RAISE(ABORT, 'statements are never changed'); END;
CREATE TRIGGER statements_stay BEFORE DELETE ON statements
BEGIN SELECT RAISE(ABORT, 'statements are never deleted'); END;
CREATE TRIGGER payments_keep BEFORE UPDATE ON payments
BEGIN SELECT RAISE(ABORT, 'payments are never changed'); END;
CREATE TRIGGER payments_stay BEFORE DELETE ON payments
BEGIN SELECT RAISE(ABORT, 'payments are never deleted'); END;
CREATE TRIGGER corrections_keep BEFORE UPDATE ON corrections
BEGIN SELECT RAISE(ABORT, 'corrections are never changed'); END;
CREATE TRIGGER corrections_stay BEFORE DELETE ON corrections
BEGIN SELECT RAISE(ABORT, 'corrections are never deleted'); END;
CREATE TRIGGER exceptions_resolve_once BEFORE UPDATE ON exceptions
WHEN OLD.resolved_outcome IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the exception is resolved'); END;
CREATE TRIGGER exceptions_stay BEFORE DELETE ON exceptions
BEGIN SELECT RAISE(ABORT, 'exceptions are never deleted'); END;
-- only postgres
CREATE FUNCTION check_journal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- One by one, as a join would read all accounts for the few of a journal.
    IF (SELECT count(*) FROM postings WHERE journal = NEW.id) < 2 OR EXISTS (
        SELECT 1 FROM (
            SELECT p.amount, (SELECT a.currency FROM accounts a WHERE a.id = p.account) AS currency
            FROM postings p WHERE p.journal = NEW.id
        ) AS lines GROUP BY currency HAVING sum(amount) <> 0
    ) THEN
        RAISE EXCEPTION 'the journal does not sum to zero';
    END IF;
    IF NEW.period <= (SELECT max(period) FROM periods) THEN
        RAISE EXCEPTION 'the period is closed';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER journals_balance BEFORE INSERT ON journals FOR EACH ROW EXECUTE FUNCTION check_journal();

CREATE FUNCTION check_postings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM (SELECT DISTINCT journal FROM added) a JOIN journals j ON j.id = a.journal) THEN
        RAISE EXCEPTION 'the journal is closed';
    END IF;
    IF EXISTS (SELECT 1 FROM added p LEFT JOIN accounts a ON a.id = p.account WHERE a.id IS NULL) THEN
        RAISE EXCEPTION 'a posting has no account';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_not_into_a_closed_journal AFTER INSERT ON postings REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION check_postings();

CREATE FUNCTION check_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM (SELECT DISTINCT chain FROM added) a WHERE NOT EXISTS (
            SELECT 1 FROM chains c WHERE c.id = a.chain))
        OR EXISTS (SELECT 1 FROM (SELECT DISTINCT journal FROM added WHERE journal IS NOT NULL) a
            WHERE NOT EXISTS (SELECT 1 FROM journals j WHERE j.id = a.journal)) THEN
        RAISE EXCEPTION 'an event has no chain, or no journal';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER events_of_a_chain AFTER INSERT ON events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION check_events();

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% are never changed or deleted', TG_TABLE_NAME;
END $$;
DO $$
DECLARE kept TEXT;
BEGIN
    FOREACH kept IN ARRAY ARRAY['events', 'journals', 'postings', 'accounts', 'tariffs', 'splits', 'parties',
        'periods', 'invoices', 'statements', 'payments', 'corrections'] LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OR DELETE OR TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION refuse()', kept || '_keep', kept);
    END LOOP;
    FOREACH kept IN ARRAY ARRAY['balances', 'exceptions'] LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE DELETE OR TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION refuse()', kept || '_keep', kept);
    END LOOP;
END $$;
CREATE FUNCTION check_exception() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.resolved_outcome IS NOT NULL THEN
        RAISE EXCEPTION 'the exception is resolved';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER exceptions_resolve_once BEFORE UPDATE ON exceptions
    FOR EACH ROW EXECUTE FUNCTION check_exception();
-- both
