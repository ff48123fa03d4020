-- Flags are numbers, 0 or 1, from here on: of the types that both databases have, BOOLEAN is read in two ways.
ALTER TABLE servers ADD COLUMN alive_flag BIGINT NOT NULL DEFAULT 0;
UPDATE servers SET alive_flag = 1 WHERE alive;
ALTER TABLE servers DROP COLUMN alive;
ALTER TABLE servers RENAME COLUMN alive_flag TO alive;

ALTER TABLE clients ADD COLUMN disabled_flag BIGINT NOT NULL DEFAULT 0;
UPDATE clients SET disabled_flag = 1 WHERE disabled;
ALTER TABLE clients DROP COLUMN disabled;
ALTER TABLE clients RENAME COLUMN disabled_flag TO disabled;

ALTER TABLE buckets ADD COLUMN public_flag BIGINT NOT NULL DEFAULT 0;
UPDATE buckets SET public_flag = 1 WHERE public;
ALTER TABLE buckets DROP COLUMN public;
ALTER TABLE buckets RENAME COLUMN public_flag TO public;

ALTER TABLE contents ADD COLUMN withdrawn_flag BIGINT NOT NULL DEFAULT 0;
UPDATE contents SET withdrawn_flag = 1 WHERE withdrawn;
ALTER TABLE contents DROP COLUMN withdrawn;
ALTER TABLE contents RENAME COLUMN withdrawn_flag TO withdrawn;
