-- What a client may take; NULL is no bound. Quotas are of what its library holds, rates are for each gateway.
ALTER TABLE clients ADD COLUMN quota_bytes BIGINT;
ALTER TABLE clients ADD COLUMN quota_contents BIGINT;
ALTER TABLE clients ADD COLUMN requests_per_s BIGINT;
ALTER TABLE clients ADD COLUMN bytes_per_s BIGINT;
