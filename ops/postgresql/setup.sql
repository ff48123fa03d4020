-- Roles and databases for search and the two billing servers, which may each be kept in PostgreSQL instead of an SQLite
-- file. Run once by a superuser, with a password for each role in the environment:
--   DOZO_SEARCH_PASSWORD=… DOZO_SERVICE_BILLING_PASSWORD=… DOZO_CONTENT_BILLING_PASSWORD=… DOZO_BACKUP_PASSWORD=… \
--     psql -v ON_ERROR_STOP=1 -f setup.sql postgres
-- The servers make their tables themselves, at their first start and after an update.
\set ON_ERROR_STOP on
\getenv search_password DOZO_SEARCH_PASSWORD
\getenv service_password DOZO_SERVICE_BILLING_PASSWORD
\getenv content_password DOZO_CONTENT_BILLING_PASSWORD
\getenv backup_password DOZO_BACKUP_PASSWORD

-- A server has one connection that writes, four that read, and one that looks whether another writes; twice that while
-- one takes over from another.
CREATE ROLE "dozo-search" LOGIN PASSWORD :'search_password' CONNECTION LIMIT 12;
CREATE ROLE "dozo-service-billing" LOGIN PASSWORD :'service_password' CONNECTION LIMIT 12;
CREATE ROLE "dozo-content-billing" LOGIN PASSWORD :'content_password' CONNECTION LIMIT 12;
-- Reads all, for pg_dump; changes nothing.
CREATE ROLE "dozo-backup" LOGIN PASSWORD :'backup_password' IN ROLE pg_read_all_data;

CREATE DATABASE "dozo-search" OWNER "dozo-search" ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE "dozo-service-billing" OWNER "dozo-service-billing" ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE "dozo-content-billing" OWNER "dozo-content-billing" ENCODING 'UTF8' TEMPLATE template0;

-- Each database is for its own server and for backups.
REVOKE ALL ON DATABASE "dozo-search", "dozo-service-billing", "dozo-content-billing" FROM PUBLIC;
GRANT CONNECT ON DATABASE "dozo-search", "dozo-service-billing", "dozo-content-billing" TO "dozo-backup";

\connect "dozo-search"
ALTER SCHEMA public OWNER TO "dozo-search";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
\connect "dozo-service-billing"
ALTER SCHEMA public OWNER TO "dozo-service-billing";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
\connect "dozo-content-billing"
ALTER SCHEMA public OWNER TO "dozo-content-billing";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
