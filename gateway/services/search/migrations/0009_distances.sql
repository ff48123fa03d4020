-- How far sites, zones and origins (by name) are from a site, in whatever unit the operator has.
CREATE TABLE site_distances (
    site TEXT NOT NULL REFERENCES sites (site),
    name TEXT NOT NULL,
    distance BIGINT NOT NULL,
    PRIMARY KEY (site, name)
);
