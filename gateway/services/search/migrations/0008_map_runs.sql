-- The runs of search that led to the present map, in their order; `after_epoch` is the last map before the run.
CREATE TABLE map_runs (
    position BIGINT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    after_epoch BIGINT NOT NULL
);
