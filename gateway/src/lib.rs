//! The gateway: takes a client's request, delivers what the site holds, otherwise collects it from the nearest
//! site or an origin, stores it for the client, delivers it, and sees that the delivery is recorded.
//!
//! A gateway has no state of its own: everything it keeps (map, tokens seen, round-trip times, a chunk cache) can
//! be lost at any moment. Kill one, start another.
//!
//! # Life of a delivery
//!
//! `authenticate → resolve → begin → send → end`, and for what the site does not hold, in the place of resolve,
//! `search → rank → fetch (verify, store, tee) → hold → announce`. These words are function names here.
//!
//! 1. *authenticate* ([`directory`]): bearer token → client and its home site.
//! 2. *resolve* ([`deliver`]): the owner of the name's slot says what the site holds, and notes durably that this
//!    client is about to hold it.
//! 3. *begin*: the owner of the client's slot writes library row and delivery record in one durable commit, while
//!    the first chunk is on its way from its node.
//!
//!    Where one node owns both slots, 2 and 3 are one call and one commit: *open* ([`opens`]), and what many clients ask
//!    for at the same time goes together.
//! 4. *send* ([`body`]): chunks in order, read ahead by one, as the reader takes them.
//! 5. *end* ([`ends`]): how many bytes went out, reported in batches behind the answer.
//!
//! # Map of the code
//!
//! [`wish`] what is asked for, [`head`] what an answer says · [`site`] the site's nodes and who owns what ·
//! [`chunks`] reading and writing chunks, as many copies as the site keeps · [`publish`] a client's own content ·
//! [`collect`] what the site lacks · [`surrogate`] clients of other sites, [`visitors`] those that come with a card,
//! [`authentication`] this site's own that are elsewhere · [`usage`], [`limits`] what a
//! client holds and may take, [`quote`], [`books`] what it would be and is charged · [`routes`] HTTP.
//!
//! # Invariants
//!
//! - Nothing goes out before the record is durable: only [`deliver::Delivery`] makes a body.
//! - A chunk from outside the site is verified before it is stored or sent.
//! - Who pays is who authenticated; no field of a request can name somebody else.

pub mod authentication;
pub mod body;
pub mod books;
pub mod chunks;
pub mod collect;
pub mod config;
pub mod deliver;
pub mod directory;
pub mod ends;
pub mod head;
pub mod heaviest;
pub mod limits;
pub mod metrics;
pub mod opens;
pub mod publish;
pub mod quote;
pub mod routes;
pub mod server;
pub mod site;
pub mod surrogate;
pub mod usage;
pub mod visitors;
pub mod wish;

pub use config::Config;
pub use server::start;
