-- Contents get numbers, in the order in which their names became known; parts of names and hashes are found by index.
CREATE TABLE contents_numbered (
-- only sqlite
    id INTEGER PRIMARY KEY,
-- only postgres
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
-- both
    name TEXT NOT NULL UNIQUE,
    time BIGINT NOT NULL,
    hash BLOB NOT NULL,
    len BIGINT NOT NULL,
    media_type TEXT NOT NULL,
    provider TEXT NOT NULL,
    withdrawn BIGINT NOT NULL,
    held BIGINT NOT NULL
);
INSERT INTO contents_numbered (name, time, hash, len, media_type, provider, withdrawn, held)
    SELECT name, time, hash, len, media_type, provider, withdrawn, held FROM contents ORDER BY name;
DROP TABLE contents;
ALTER TABLE contents_numbered RENAME TO contents;
CREATE INDEX contents_listed ON contents (name) WHERE held > 0;
CREATE INDEX contents_hash ON contents (hash);

-- Every three characters that follow each other in a name. A name stays in it: whether it is held, `contents` says.
-- only sqlite
CREATE VIRTUAL TABLE names USING fts5 (name, content = '', tokenize = 'trigram', detail = none, columnsize = 0);
INSERT INTO names (rowid, name) SELECT id, name FROM contents;
CREATE TRIGGER contents_named AFTER INSERT ON contents BEGIN
    INSERT INTO names (rowid, name) VALUES (new.id, new.name);
END;
-- only postgres
-- Without the extension parts of names are still found, by reading all names.
DO $$ BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX contents_parts ON contents USING gin (name gin_trgm_ops);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'no index for parts of names: %', SQLERRM;
END $$;
-- both

-- `mark`: the snapshot of its announcer that confirmed the row last; 0 if none was.
CREATE TABLE holders_marked (
    name TEXT NOT NULL,
    kind TEXT NOT NULL, -- 'site' or 'origin'
    holder TEXT NOT NULL,
    time BIGINT NOT NULL,
    hash BLOB NOT NULL,
    mark BIGINT NOT NULL,
    PRIMARY KEY (name, kind, holder)
-- only sqlite
) WITHOUT ROWID;
-- only postgres
);
-- both
INSERT INTO holders_marked SELECT name, kind, holder, time, hash, 0 FROM holders;
DROP TABLE holders;
ALTER TABLE holders_marked RENAME TO holders;

-- `snapshot`: the mark of the snapshot that the announcer is sending, 0 if it sends none. `resync`: 1 if it is asked for one.
ALTER TABLE announcers ADD COLUMN snapshot BIGINT NOT NULL DEFAULT 0;
ALTER TABLE announcers ADD COLUMN resync BIGINT NOT NULL DEFAULT 0;
ALTER TABLE map_state ADD COLUMN mark BIGINT NOT NULL DEFAULT 0;

-- Snapshots that ended: what a site held in these slots (one bit each) without their mark is to go, from `after` on.
CREATE TABLE sweeps (
    mark BIGINT NOT NULL PRIMARY KEY,
    site TEXT NOT NULL,
    slots BLOB NOT NULL,
    after TEXT NOT NULL
);
