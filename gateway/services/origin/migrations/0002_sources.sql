-- Sources with a limit of their own, that can be removed, and whose place is known.

-- Most parts read at a time; NULL: the origin's own limit.
ALTER TABLE sources ADD COLUMN read_concurrency BIGINT;
-- Its contents are being withdrawn; the row goes with the last of them.
ALTER TABLE sources ADD COLUMN removing BOOLEAN NOT NULL DEFAULT FALSE;
-- What the folder was (device and inode) when its contents were last seen; empty for object stores. Where a disk
-- was unmounted it is another.
ALTER TABLE sources ADD COLUMN place TEXT NOT NULL DEFAULT '';
