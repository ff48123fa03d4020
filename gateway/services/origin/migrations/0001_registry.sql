-- What an origin has registered, first form. Column types and statements stay with what SQLite and PostgreSQL
-- both take.

-- One row: the epoch in which announcements are numbered (milliseconds since 1970 when it began), and the number
-- of the next one.
CREATE TABLE announcing (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch BIGINT NOT NULL,
    next_seq BIGINT NOT NULL
);

-- One source a bucket. `scan` counts the scans that were begun.
CREATE TABLE sources (
    bucket TEXT NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL,
    url TEXT NOT NULL,
    scan BIGINT NOT NULL
);

-- One row for each object ever registered. `size`, `modified`, `tag` are what the store said when the object was
-- read: while it says the same, the object is not read again. `gone` rows stay, so that an object that comes back
-- gets a version after the one that was withdrawn.
CREATE TABLE contents (
    name TEXT NOT NULL PRIMARY KEY,
    bucket TEXT NOT NULL,
    location TEXT NOT NULL,
    size BIGINT NOT NULL,
    modified BIGINT NOT NULL,
    tag TEXT NOT NULL,
    scan BIGINT NOT NULL, -- last scan that saw the object
    gone BOOLEAN NOT NULL,
    time BIGINT NOT NULL,
    hash BLOB NOT NULL,
    len BIGINT NOT NULL,
    media_type TEXT NOT NULL,
    since BIGINT NOT NULL,
    chunks BLOB NOT NULL -- encoded chunk list
);
CREATE INDEX contents_of_bucket ON contents (bucket, gone, scan);

-- Announcements that search has not acknowledged yet, as JSON.
CREATE TABLE outbox (
    seq BIGINT NOT NULL PRIMARY KEY,
    item TEXT NOT NULL
);
