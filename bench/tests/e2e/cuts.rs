//! Exactly once, to the millionth: nodes and billing servers are killed and the network between them is cut at each
//! step of a delivery's life, while clients do what clients do. Then what the clients saw is what both servers booked.
//!
//! ```text
//! begin durable ─ bytes flow ─ end durable ─ batch sent ─ batch committed ─ answer received ─ cursor stored
//! ```
//! For a longer run, or the same once more:
//! ```text
//! DOZO_STRESS_ROUNDS=20 DOZO_STRESS_SEED=7 cargo test -p bench --test e2e cuts -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use bench::content::Choices;
use common::api::billing::{ChainView, Totals, Usage};
use serde_json::{Value, json};

use crate::books::{billing, this_month};
use crate::cluster::{Cluster, Mode, Options, eventually};
use crate::fresh_bytes;
use crate::http::Client;
use crate::link::{Fault, Link};
use crate::mix::{Offer, Seen, Sight};

const SERVERS: [&str; 2] = ["service-billing", "content-billing"];
/// Nodes wait up to ten seconds before they try a billing server again.
const SETTLED_SOON: Duration = Duration::from_secs(60);
/// Turns of each client in each step.
const TURNS: u64 = 12;

/// Where in a delivery's life something breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    NodeKilledAtTheFirstByte,
    NodeKilledWhileBytesFlow,
    NodeKilledAtTheEnd,
    BatchesRefused,
    BatchesTorn,
    ServerKilledBeforeTheCommit,
    ServerKilledAfterTheCommit,
    AnswersLost,
    AnswersLate,
    NodeKilledBeforeItStoresTheCursor,
    AllKilled,
}

const STEPS: [Step; 11] = [
    Step::NodeKilledAtTheFirstByte,
    Step::NodeKilledWhileBytesFlow,
    Step::NodeKilledAtTheEnd,
    Step::BatchesRefused,
    Step::BatchesTorn,
    Step::ServerKilledBeforeTheCommit,
    Step::ServerKilledAfterTheCommit,
    Step::AnswersLost,
    Step::AnswersLate,
    Step::NodeKilledBeforeItStoresTheCursor,
    Step::AllKilled,
];

fn from_env(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// A system whose nodes reach both billing servers through links, its clients and what they ask for.
struct Stage {
    cluster: Cluster,
    links: [Link; 2],
    clients: Vec<Client>,
    /// Whose downloads are under way when something is killed.
    witness: Client,
    offers: Vec<Offer>,
    choices: Choices,
    sight: Sight,
}

impl Stage {
    fn build(seed: u64) -> Self {
        let links = [Link::new(), Link::new()];
        let options = Options {
            nodes: 1,
            // What a node has can come from that node alone.
            cache_bytes: 0,
            // Ends that wait for a killed node come in time.
            join_window_ms: 4_000,
            billing_through: Some(links.each_ref().map(|link| link.http.clone())),
            ..Options::default()
        };
        let cluster = Cluster::start(Mode::ProcessPerServer, &options);
        for (link, name) in links.iter().zip(SERVERS) {
            link.lead_to(&cluster.server(name).http);
        }
        enter_prices(&cluster);
        let alice = cluster.client("alice");
        let choices = Choices::new(seed, 0);
        let lens = [2, 700, 4_096, 123_457, 1_999_999];
        let small = lens.map(|len| (len, false));
        let offers = small.into_iter().chain([(24 << 20, true)]).map(|(len, is_big)| {
            let offer = Offer { name: format!("alice/{len}"), bytes: fresh_bytes(len), is_big };
            alice.put_content(&offer.name, &offer.bytes).expect(201);
            offer
        });
        let offers: Vec<Offer> = offers.collect();
        // Osaka finds them once search knows them.
        for offer in &offers {
            eventually("search knows it", SETTLED_SOON, || cluster.lookup(&offer.name).map(drop));
        }
        let clients = vec![alice, cluster.client("bob"), cluster.client("carol"), cluster.client("studio")];
        let witness = cluster.new_client("witness", "tokyo");
        Self { cluster, links, clients, witness, offers, choices, sight: Sight::default() }
    }

    /// Clients have their turns while `breaks` does its work with one of the servers and the link to it.
    fn live(&mut self, breaks: impl FnOnce(&Cluster, &Link, &str)) {
        let which = self.choices.below(2) as usize;
        let (cluster, offers) = (&self.cluster, &self.offers);
        let (link, server) = (&self.links[which], SERVERS[which]);
        let streams: Vec<Choices> =
            self.clients.iter().map(|_| Choices::new(self.choices.next_u64(), 1)).collect();
        let sights: Vec<Sight> = std::thread::scope(|scope| {
            let each = self.clients.iter().zip(streams).map(|(client, mut choices)| {
                scope.spawn(move || {
                    let mut sight = Sight::default();
                    for _ in 0..TURNS {
                        sight.turn(client, offers, &mut choices);
                    }
                    sight
                })
            });
            let each: Vec<_> = each.collect();
            breaks(cluster, link, server);
            each.into_iter().map(|client| client.join().expect("a client saw what must not be")).collect()
        });
        for link in &self.links {
            link.strike(Fault::None);
            link.mend();
        }
        sights.into_iter().for_each(|sight| self.sight.add(sight));
    }

    fn go_through(&mut self, step: Step) {
        let after_bytes = self.choices.below(900) as usize;
        match step {
            Step::NodeKilledAtTheFirstByte => self.witness_a_kill(0),
            Step::NodeKilledWhileBytesFlow => self.witness_a_kill(1 << 20),
            Step::NodeKilledAtTheEnd => self.kill_after_a_whole_read(),
            Step::BatchesRefused => self.live(|_, link, _| {
                link.cut();
                link.await_struck(link.struck() + 3);
            }),
            Step::BatchesTorn => self.live(|cluster, link, server| {
                link.strike(Fault::TornRequests { after_bytes });
                // What was whole before may still be on its way; then there comes nothing.
                eventually("of torn batches nothing is booked", SETTLED_SOON, || {
                    let before = booked(cluster, server);
                    link.await_struck(link.struck() + 3);
                    let after = booked(cluster, server);
                    if after == before { Ok(()) } else { Err(format!("{after} records after {before}")) }
                });
            }),
            Step::ServerKilledBeforeTheCommit => self.live(|cluster, link, server| {
                link.strike(Fault::StalledRequests { after_bytes });
                link.await_struck(1);
                let before = booked(cluster, server);
                kill_and_restart(cluster, &[server]);
                assert!(booked(cluster, server) >= before, "what was committed is gone");
            }),
            Step::ServerKilledAfterTheCommit => self.live(|cluster, link, server| {
                let before = booked(cluster, server);
                commit_unanswered(cluster, link, server, before);
                kill_and_restart(cluster, &[server]);
                assert!(booked(cluster, server) > before, "what was committed is gone");
            }),
            Step::AnswersLost => self.live(|_, link, _| {
                link.strike(Fault::LostAnswers);
                link.await_struck(3);
                link.strike(Fault::None);
            }),
            Step::AnswersLate => self.live(|cluster, link, server| {
                commit_unanswered(cluster, link, server, booked(cluster, server));
            }),
            Step::NodeKilledBeforeItStoresTheCursor => self.live(|cluster, link, server| {
                let duplicates = || cluster.metric(server, "dozo_billing_records_total", "duplicate");
                let before = duplicates();
                commit_unanswered(cluster, link, server, booked(cluster, server));
                // The answer reaches the nodes' sockets, and nobody reads it.
                let nodes = ["tokyo.n1", "osaka.n1"];
                nodes.iter().for_each(|node| cluster.freeze(node));
                link.strike(Fault::None);
                kill_and_restart(cluster, &nodes);
                eventually("it is sent again, and known", SETTLED_SOON, || {
                    if duplicates() > before { Ok(()) } else { Err(format!("{before} duplicates")) }
                });
            }),
            Step::AllKilled => self.live(|cluster, _, _| {
                kill_and_restart(cluster, &["tokyo.n1", SERVERS[0], "osaka.n1", SERVERS[1]]);
            }),
        }
    }

    /// The node is killed when so many bytes of a big content have arrived.
    fn witness_a_kill(&mut self, bytes: u64) {
        let big = self.offers.iter().position(|offer| offer.is_big).expect("there is a big one");
        let (witness, mut sight) = (self.witness.clone(), std::mem::take(&mut self.sight));
        // The gateway may not have found out yet that the node is back from the step before.
        let (delivery, mut incoming) = eventually("a download begins", SETTLED_SOON, || {
            sight.begin(&witness, &self.offers[big], None).ok_or_else(|| "it is refused".to_owned())
        });
        let mut seen = incoming.read_exact(bytes as usize).expect("the node still runs").len() as u64;
        self.live(|cluster, _, _| kill_and_restart(cluster, &["tokyo.n1"]));
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = incoming.read_some(&mut buffer) {
            seen += len as u64;
        }
        let row = sight.seen.get_mut(&delivery).expect("it was begun");
        row.bytes += seen;
        row.is_broken = row.bytes < row.bytes_total;
        sight.add(std::mem::take(&mut self.sight));
        self.sight = sight;
    }

    /// The node is killed when a client has just received the last byte.
    fn kill_after_a_whole_read(&mut self) {
        let (witness, mut sight) = (self.witness.clone(), Sight::default());
        let offer = &self.offers[3];
        sight.read(&witness, offer, None, offer.bytes.len() as u64);
        self.cluster.kill("tokyo.n1");
        self.cluster.restart("tokyo.n1");
        self.cluster.await_ready("tokyo.n1");
        self.sight.add(sight);
    }
}

/// Prices that reach the last millionth.
fn enter_prices(cluster: &Cluster) {
    let service = json!({"valid_from": "2021-01-01", "currency": "JPY", "per_delivery": "0.123457",
        "per_megabyte": "0.019993"});
    let content = json!({"valid_from": "2021-01-01", "currency": "JPY", "purchase": "10.000007",
        "reference": "1.000003"});
    for (fee, tariff) in [(true, service), (false, content)] {
        cluster.billing(fee).send_json("PUT", "/v1/tariffs", &tariff).expect(200);
    }
}

fn kill_and_restart(cluster: &Cluster, servers: &[&str]) {
    servers.iter().for_each(|server| cluster.kill(server));
    servers.iter().for_each(|server| cluster.restart(server));
    servers.iter().for_each(|server| cluster.await_ready(server));
}

/// Records that a billing server has booked.
fn booked(cluster: &Cluster, server: &str) -> u64 {
    let totals: Totals = cluster.billing(server == SERVERS[0]).get("/v1/totals").expect(200).json();
    totals.records.values().sum()
}

/// Lets records be committed whose answer does not come; `before` so many were.
fn commit_unanswered(cluster: &Cluster, link: &Link, server: &str, before: u64) {
    eventually("records are committed", SETTLED_SOON, || {
        link.strike(Fault::StalledAnswers);
        link.await_struck(1);
        if booked(cluster, server) > before {
            return Ok(());
        }
        // That was a mark without records.
        link.strike(Fault::None);
        Err("only marks come".to_owned())
    });
}

/// All records of a server by delivery; each is there once.
fn records(server: &Client) -> BTreeMap<String, Value> {
    let chains: Vec<ChainView> = server.get("/v1/chains").expect(200).json();
    let mut all = BTreeMap::new();
    for ChainView { node, epoch, last_seq, .. } in chains {
        let mut after = 0;
        loop {
            let path = format!("/v1/records?node={node}&epoch={epoch}&after={after}&limit=1000");
            let page: Value = server.get(&path).expect(200).json();
            for record in page["records"].as_array().unwrap() {
                after += 1;
                assert_eq!(record["seq"], after, "numbers have no gaps");
                let before = all.insert(text(record, "delivery").to_owned(), record.clone());
                assert!(before.is_none(), "a delivery is booked twice: {record}");
            }
            if page["next"].is_null() {
                break;
            }
        }
        assert!(after >= last_seq, "{node} has {after} records of {last_seq}");
    }
    all
}

/// A field of a booked record, as `GET /v1/records` shows it.
fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("{field} in {record}"))
}

/// Whole millionths by ratios: each rounded down, what is left to the greatest remainders, ties in order.
fn shares(total: i64, ratios: &[(&str, i64)]) -> Vec<(String, i64)> {
    let mut shares: Vec<(String, i64)> =
        ratios.iter().map(|(who, ratio)| ((*who).to_owned(), total * ratio / 10_000)).collect();
    let mut by_remainder: Vec<usize> = (0..ratios.len()).collect();
    by_remainder.sort_by_key(|n| -(total * ratios[*n].1 % 10_000));
    let left = total - shares.iter().map(|(_, micros)| micros).sum::<i64>();
    for n in &by_remainder[..left as usize] {
        shares[*n].1 += 1;
    }
    shares
}

/// What a delivery costs, and who gets it.
fn charge(is_service: bool, seen: &Seen, is_billed: bool) -> (i64, Vec<(String, i64)>) {
    let home = if seen.client == "carol" { "site:osaka" } else { "site:tokyo" };
    let is_hit = seen.source == "hit";
    let source = format!("site:{}", seen.source_site.as_deref().unwrap_or_default());
    if !is_billed {
        return (0, Vec::new());
    }
    if is_service {
        let micros = 123_457 + (19_993 * seen.bytes_total as i64 + 500_000) / 1_000_000;
        let hit = [(home, 8_000), ("billing:service", 2_000)];
        let peer = [(home, 5_000), (source.as_str(), 3_000), ("search", 1_000), ("billing:service", 1_000)];
        return (micros, shares(micros, if is_hit { &hit } else { &peer }));
    }
    let micros = match (seen.client.as_str(), seen.class.as_str()) {
        ("alice", _) => 0, // it is her own
        (_, "purchase") => 10_000_007,
        _ => 1_000_003,
    };
    let provider = "provider:alice";
    let hit = [(home, 1_000), ("billing:content", 500), (provider, 8_500)];
    let peer =
        [(home, 800), (source.as_str(), 400), ("search", 200), ("billing:content", 500), (provider, 8_100)];
    (micros, shares(micros, if is_hit { &hit } else { &peer }))
}

/// How a delivery that a client saw must have been booked.
fn assert_booked_as_seen(record: &Value, seen: &Seen) {
    let (status, sent) = (text(record, "status"), record["bytes_sent"].as_u64().unwrap());
    let told = || format!("{seen:?} is booked as {record}");
    assert_eq!(
        [text(record, "client"), text(record, "content"), text(record, "class"), text(record, "path")],
        [&seen.client, &seen.name, &seen.class, &seen.source],
        "{}",
        told()
    );
    assert_eq!(record["source"]["site"].as_str(), seen.source_site.as_deref(), "{}", told());
    assert_eq!(record["bytes_total"], seen.bytes_total);
    match status {
        "complete" => {
            assert!(sent >= seen.bytes_total && (seen.is_broken || sent <= seen.bytes), "{}", told());
        }
        "partial" if seen.is_broken => assert!(sent >= seen.bytes && sent < seen.bytes_total, "{}", told()),
        "partial" => assert_eq!(sent, seen.bytes, "{}", told()),
        "void" => assert!(seen.is_broken && seen.bytes == 0 && sent == 0, "{}", told()),
        _ => panic!("no gateway stopped, so every end was told: {}", told()),
    }
    if !seen.is_broken && seen.bytes >= seen.bytes_total {
        assert_eq!(status, "complete", "{}", told());
    }
}

impl Stage {
    /// Waits until nodes' logs and both books agree on everything the clients saw.
    fn settle(&self) {
        eventually("all sides agree", SETTLED_SOON, || {
            for fee in [true, false] {
                let all = records(&self.cluster.billing(fee));
                if let Some(missing) = self.sight.seen.keys().find(|delivery| !all.contains_key(*delivery)) {
                    return Err(format!(
                        "delivery {missing} is not booked yet: {:?}",
                        self.sight.seen[missing]
                    ));
                }
            }
            let (agrees, reports) = billing(&self.cluster, &["reconcile", &this_month()]);
            if agrees { Ok(()) } else { Err(format!("{reports:?}")) }
        });
    }

    fn assert_books_are_what_was_seen(&self) {
        let both = [true, false].map(|fee| records(&self.cluster.billing(fee)));
        assert!(both[0].keys().eq(both[1].keys()), "both servers have the same deliveries");
        for (is_service, records) in [true, false].into_iter().zip(&both) {
            let mut accounts: BTreeMap<String, i64> = BTreeMap::new();
            let mut unseen = 0;
            for (delivery, record) in records {
                let Some(seen) = self.sight.seen.get(delivery) else {
                    // It was refused after its begin.
                    unseen += 1;
                    assert!(["void", "recovered"].contains(&text(record, "status")), "{record}");
                    assert!(record["charge_micros"].is_null(), "{record}");
                    continue;
                };
                assert_booked_as_seen(record, seen);
                let is_billed = ["complete", "partial"].contains(&text(record, "status"));
                let (micros, shares) = charge(is_service, seen, is_billed);
                assert_eq!(record["charge_micros"].as_i64().unwrap_or(0), micros, "{seen:?}: {record}");
                *accounts.entry(format!("unbilled:{}", seen.client)).or_default() += micros;
                for (party, micros) in shares {
                    *accounts.entry(format!("payable:{party}")).or_default() -= micros;
                }
            }
            assert!(unseen <= self.sight.refused, "{unseen} records of {} refusals", self.sight.refused);
            accounts.retain(|_, micros| *micros != 0);
            let server = self.cluster.billing(is_service);
            let page: Vec<Value> = server.get("/v1/accounts?limit=1000").expect(200).json();
            let balances: BTreeMap<String, i64> = page
                .iter()
                .map(|line| (text(line, "account").to_owned(), line["balance_micros"].as_i64().unwrap()))
                .filter(|(_, micros)| *micros != 0)
                .collect();
            assert_eq!(balances, accounts);
            for client in self.clients.iter().chain([&self.witness]) {
                let path = format!("/v1/usage?client={}&period={}", client.name, this_month());
                let usage: Usage = server.get(&path).expect(200).json();
                let micros: i64 = usage.charges.iter().map(|charge| charge.micros).sum();
                let expected = accounts.get(&format!("unbilled:{}", client.name)).copied().unwrap_or(0);
                assert_eq!(micros, expected, "{usage:?}");
            }
        }
        let (in_order, reports) = billing(&self.cluster, &["verify"]);
        assert!(in_order, "{reports:?}");
    }
}

#[test]
fn killed_and_cut_at_each_step_what_clients_saw_is_what_both_servers_booked() {
    let (seed, rounds) = (from_env("DOZO_STRESS_SEED", 0x0d0_2006), from_env("DOZO_STRESS_ROUNDS", 1));
    println!("DOZO_STRESS_SEED={seed} DOZO_STRESS_ROUNDS={rounds}");
    let mut stage = Stage::build(seed);
    for round in 0..rounds {
        let mut steps = STEPS.to_vec();
        while !steps.is_empty() {
            let step = steps.swap_remove(stage.choices.below(steps.len() as u64) as usize);
            println!("round {round}: {step:?}");
            stage.go_through(step);
        }
        stage.settle();
        stage.assert_books_are_what_was_seen();
        let sight = &stage.sight;
        println!("{} deliveries, {} refused, {} dropped", sight.seen.len(), sight.refused, sight.dropped);
    }
    assert!(stage.sight.seen.len() as u64 > rounds * STEPS.len() as u64);
}
