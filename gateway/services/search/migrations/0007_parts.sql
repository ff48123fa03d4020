-- only postgres
-- The index for parts of names is one of another expression than the name: it answers equality too, if far more slowly, and
-- was taken for that before the index that is made for it.
DROP INDEX IF EXISTS contents_parts;
DO $$ BEGIN
    CREATE INDEX contents_parts ON contents USING gin (lower(name) gin_trgm_ops);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'no index for parts of names: %', SQLERRM;
END $$;
