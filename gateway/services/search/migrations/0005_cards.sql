-- Cards of clients: public keys, in hexadecimal, by which the home site knows who answers from afar. `disabled` is 0 or 1.
CREATE TABLE cards (
    card TEXT NOT NULL PRIMARY KEY,
    client TEXT NOT NULL REFERENCES clients (client),
    disabled BIGINT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX cards_of_client ON cards (client);
