-- Sites of many nodes: how many copies a site keeps, what the operator wants of a node, who serves a node's
-- shard.

-- NULL: as many as the site's nodes allow, at most two.
ALTER TABLE sites ADD COLUMN replicas BIGINT;

-- Storage nodes: 'active', 'draining' or 'removed', and the size of the store. Shares in placement follow
-- from the sizes of all nodes of a site, so none is kept.
ALTER TABLE servers ADD COLUMN state TEXT;
ALTER TABLE servers ADD COLUMN capacity_bytes BIGINT;
UPDATE servers SET state = 'active', capacity_bytes = COALESCE(weight, 0) * 1073741824
    WHERE role = 'storage-node';
ALTER TABLE servers DROP COLUMN weight;

-- Which node (by name, in its site) serves a node's shard, and since which term.
CREATE TABLE shards (
    site TEXT NOT NULL REFERENCES sites (site),
    node TEXT NOT NULL,
    term BIGINT NOT NULL,
    primary_node TEXT NOT NULL,
    PRIMARY KEY (site, node)
);
INSERT INTO shards (site, node, term, primary_node)
    SELECT site, name, 1, name FROM servers WHERE role = 'storage-node';

-- Who has every acknowledged change of a shard; `position` is the order of joining, in which they are
-- promoted.
CREATE TABLE shard_followers (
    site TEXT NOT NULL,
    node TEXT NOT NULL,
    follower TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (site, node, follower),
    FOREIGN KEY (site, node) REFERENCES shards (site, node)
);
