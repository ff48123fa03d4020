-- The directory, first form. Column types and statements stay with what SQLite and PostgreSQL both take;
-- TEXT compares byte by byte (under PostgreSQL: COLLATE "C"), which is the order of listings.

-- One row: the number of the current cluster map, and the last fence that was given out.
CREATE TABLE map_state (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch BIGINT NOT NULL,
    fence BIGINT NOT NULL
);
INSERT INTO map_state (id, epoch, fence) VALUES (1, 1, 0);

CREATE TABLE sites (
    site TEXT NOT NULL PRIMARY KEY,
    zone TEXT,
    position BIGINT NOT NULL UNIQUE
);

-- Every server that ever registered. `position` is the order of first registration and never changes: the map
-- names slot owners by it.
CREATE TABLE servers (
    role TEXT NOT NULL,
    site TEXT NOT NULL, -- '' for servers that belong to no site
    name TEXT NOT NULL,
    position BIGINT NOT NULL UNIQUE,
    http TEXT NOT NULL,
    s3 TEXT,
    admin TEXT NOT NULL,
    alive BOOLEAN NOT NULL,
    -- Storage nodes: share in placement, identity of the node's log, epoch of its delivery records.
    weight BIGINT,
    log_id TEXT,
    record_epoch BIGINT,
    PRIMARY KEY (role, site, name)
);

-- Which node (by name, in its site) owns a slot, and the newest fence of the slot.
CREATE TABLE slots (
    site TEXT NOT NULL REFERENCES sites (site),
    slot BIGINT NOT NULL,
    owner TEXT NOT NULL,
    fence BIGINT NOT NULL,
    PRIMARY KEY (site, slot)
);

-- The bearer token is kept as a hash. The secret key is kept as it is: whoever checks a Signature V4 computes
-- with the key itself, so a hash of it would be of no use. Protect this file like a key file.
CREATE TABLE clients (
    client TEXT NOT NULL PRIMARY KEY,
    site TEXT NOT NULL,
    disabled BOOLEAN NOT NULL,
    created BIGINT NOT NULL,
    access_key TEXT NOT NULL UNIQUE,
    secret_key TEXT NOT NULL,
    token_hash TEXT NOT NULL UNIQUE
);

CREATE TABLE buckets (
    bucket TEXT NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL REFERENCES clients (client),
    public BOOLEAN NOT NULL,
    created BIGINT NOT NULL
);

-- The newest version seen of each name. `withdrawn`: this version, and so every earlier one, is not to be
-- found any more. `held` counts the rows of `holders` that have just this version; a name with 0 is not listed.
CREATE TABLE contents (
    name TEXT NOT NULL PRIMARY KEY,
    time BIGINT NOT NULL,
    hash BLOB NOT NULL,
    len BIGINT NOT NULL,
    media_type TEXT NOT NULL,
    provider TEXT NOT NULL,
    withdrawn BOOLEAN NOT NULL,
    held BIGINT NOT NULL
);
CREATE INDEX contents_listed ON contents (name) WHERE held > 0;

-- Who holds a name, and which version of it.
CREATE TABLE holders (
    name TEXT NOT NULL,
    kind TEXT NOT NULL, -- 'site' or 'origin'
    holder TEXT NOT NULL,
    time BIGINT NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (name, kind, holder)
);

-- How far each announcer's announcements are applied.
CREATE TABLE announcers (
    announcer TEXT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL,
    next_seq BIGINT NOT NULL
);

-- The change feed. A name's newest change says all that its earlier ones said, so it replaces them: the feed
-- is never longer than the list of names.
CREATE TABLE changes (
    name TEXT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL UNIQUE,
    kind TEXT NOT NULL, -- 'new_version' or 'withdrawn'
    time BIGINT NOT NULL,
    hash BLOB NOT NULL
);
