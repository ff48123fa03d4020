//! The load harness: drives a running Dozo over HTTP, checks every byte it receives, and checks that what was
//! delivered is what was billed.
//!
//! - Latency is measured from the *intended* start of a request (response time) and from its sending (service
//!   time). In an open loop the two differ by the time a request had to wait because the system was slow; a
//!   harness that shows only the second hides stalls.
//! - Contents are a function of (seed, id, length), so any byte can be checked at any time without keeping it.
//! - After a run the deliveries that were received are compared with the books of both billing servers.
//!
//! # A run
//!
//! `bench run` drives a workload ([`workload`]: a preset after a published trace, a TOML file, or flags) against a
//! target ([`target`]): Dozo's own API with `endpoints.json`, any S3 endpoint, or any plain HTTP server.
//!
//! ```console
//! $ bench run cdn-image --rate 500 --duration 1m
//! $ bench run --mix get=70,head=5,range=5,put=15,delete=3,list=2 --size lognormal:median=26KiB,sigma=1.4,max=16MiB
//! $ bench run get-4k --target s3://KEY:SECRET@127.0.0.1:3900/bench?region=garage
//! $ bench run get-4k --target http://127.0.0.1:8081/files --root /srv/files --verify off
//! $ bench run --trace wiki.tr --time-scale 10
//! $ bench run --as carol --mix get=80,collect=10,roam=10 --provider alice --card carol.card
//! ```
//!
//! - What reads need is put before the run (and its size told), below a prefix of the run's own, and removed after it.
//! - Each worker also has keys of its own, which it overwrites, deletes and lists; half of the reads after a change read
//!   what was changed. A read or a listing that shows another version than the last acknowledged one is a wrong answer
//!   and counted as stale.
//! - `collect` is a GET of what another client published at another site a moment ago, in a bucket that everybody may read:
//!   an answer that did not come from another site is wrong. Each worker has one such content ahead, so the PUT is in no
//!   operation's time, but in an open loop what waits for it waits on.
//! - `roam` is a GET of an object at a gateway of the site that mobile access brings the client to with its card; it is
//!   recorded at home, and compared with the books as all deliveries are. What the visited site keeps of it for a while
//!   goes by itself.
//! - A GET is a delivery, a HEAD is none, and the ranges of one download are one. The ranges of a download that did not
//!   come to its end, or that several connections took from one content at a time, are deliveries in part: each may be
//!   open still, or have become whole, but is booked once at most.
//!
//! | looking for | module |
//! |---|---|
//! | what is asked for, and when | [`plan`], [`workload`], [`schedule`], [`content`] |
//! | what can be driven, and how it is spoken to | [`target`], [`protocol`] |
//! | a client with a card at another site | [`visit`] |
//! | sending it | [`pacer`], [`load`]; [`wire`] and [`exchange`] where every header matters |
//! | what is put before a run, read back and removed after it | [`prepare`] |
//! | what was measured | [`measure`], [`latency`], [`timeline`], [`slo`] |
//! | how surely it was measured, and whether two runs differ | [`statistics`], [`diff`] |
//! | whether the harness itself was the limit | [`generator`] |
//! | warming up until it makes no difference | [`steady`] |
//! | several targets in turns | [`compare`] |
//! | the highest rate at which promises are kept | [`saturate`] |
//! | what the limit of a run was, in words | [`explain`] |
//! | deliveries against bookings | [`books`] |
//! | the servers meanwhile: processes, metrics | [`servers`], [`process`] |
//! | what is done to the system in mid-run, and its recovery | [`events`] |
//! | a whole run, and how it is told: tables, a page, CSV | [`run`], [`report`] |
//! | the load as it goes: on the terminal, for Prometheus | [`progress`], [`live`], [`exporter`] |
//! | load from several machines | [`agents`] |
//! | a load that checks everything while something happens to the system | [`mixed`] |
//! | a site that grows, shrinks and loses a node under it | [`growth`], [`operator`] |
//! | a node's chunk store without the network | [`device`] |
//! | collecting, as clients feel it | [`collect`] |
//! | search alone, with many contents | [`search`] |
//! | how even placement is, what moves, what it costs | [`placement`] |
//! | what deduplication does on one's own files | [`dedup`] |
//! | what ways of delivering cost the network, simulated and measured | [`traffic`] |
//! | sites that are really apart, on one machine | [`netns`] |
//! | that nothing of a run stays behind | [`orphans`] |

pub mod agents;
pub mod billing;
pub mod books;
pub mod collect;
pub mod compare;
pub mod content;
pub mod dedup;
pub mod device;
pub mod diff;
pub mod events;
pub mod exchange;
pub mod explain;
pub mod exporter;
pub mod generator;
pub mod growth;
pub mod latency;
pub mod live;
pub mod load;
pub mod measure;
pub mod mixed;
pub mod netns;
pub mod operator;
pub mod orphans;
pub mod pacer;
pub mod placement;
pub mod plan;
pub mod prepare;
pub mod process;
pub mod progress;
pub mod protocol;
pub mod report;
pub mod run;
pub mod saturate;
pub mod schedule;
pub mod search;
pub mod servers;
pub mod slo;
pub mod statistics;
pub mod steady;
pub mod target;
#[cfg(test)]
mod testing;
pub mod timeline;
pub mod traffic;
pub mod visit;
pub mod wire;
pub mod workload;
