//! What a visited site does for clients of other sites: it asks home, keeps what it fetched for a while, serves it while
//! home is away, and gives it back (F7, F8).

use std::collections::HashSet;
use std::time::Duration;

use common::api::node::LibraryRow;
use common::api::temporary::{TemporaryContent, TemporaryPage};
use serde_json::Value;

use crate::both_ways;
use crate::cluster::{Cluster, Mode, Options, SOON, eventually, unix_millis};
use crate::fresh_bytes;
use crate::http::Client;
use crate::link::Link;

const HOME: &str = "osaka";
const VISITED: &str = "tokyo";

/// Bytes that a site's gateways fetched from elsewhere.
fn fetched(cluster: &Cluster, site: &str) -> u64 {
    let gateways = cluster.site(site).gateways.iter().map(|gateway| format!("{site}.{}", gateway.name));
    gateways.map(|name| cluster.metric(&name, "dozo_gateway_collected_bytes_total", "") as u64).sum()
}

/// What a site keeps for a visitor.
fn kept(visiting: &Client) -> Vec<TemporaryContent> {
    visiting.get("/v1/temporary").expect(200).json::<TemporaryPage>().contents
}

/// Waits until a site has the whole of one content for a visitor.
#[track_caller]
fn await_whole(visiting: &Client, name: &str) -> TemporaryContent {
    eventually("what the visitor got is kept whole", SOON, || {
        let kept = kept(visiting);
        kept.iter().find(|c| c.name.as_str() == name && c.complete).cloned().ok_or(format!("{kept:?}"))
    })
}

/// The one record of a delivery, as the service and the content billing server have it.
#[track_caller]
fn booked(cluster: &Cluster, delivery: &str) -> [Value; 2] {
    let records = [true, false].map(|service| {
        let path = format!("/v1/records?delivery={delivery}");
        eventually("the delivery is booked", SOON, || {
            let found: Value = cluster.billing(service).get(&path).expect(200).json();
            let records = found["records"].as_array().unwrap();
            assert!(records.len() <= 1, "booked more than once: {found}");
            records.first().cloned().ok_or_else(|| "not yet".to_owned())
        })
    });
    for fact in ["node", "epoch", "seq", "digest", "status", "class", "home", "surrogate"] {
        assert_eq!(records[0][fact], records[1][fact], "{fact}");
    }
    records
}

/// What the test's tariff asks for the delivery of so many bytes to a visitor, in millionths: a fee for the delivery,
/// one for its bytes, and the surcharge.
fn service_fee_micros(len: usize) -> u64 {
    100_000 + (20_000 * len as u64 + 500_000) / 1_000_000 + 50_000
}

both_ways! {
    fn what_a_visitor_got_is_kept_and_served_again_with_no_bytes_from_home(cluster) {
        let alice = cluster.new_client("alice", HOME);
        let carol = cluster.new_client("carol", HOME);
        let visiting = carol.at(cluster.gateway(VISITED));
        let name = format!("{}/film", cluster.bucket(&alice, "public"));
        let bytes = fresh_bytes(9 << 20);
        alice.put_content(&name, &bytes).expect(201);
        let before = kept(&visiting);
        assert!(before.is_empty(), "{before:?}");

        let first = visiting.get_content(&name).expect(200);
        assert!(first.body == bytes, "the bytes differ");
        assert_eq!((first.header("dozo-source"), first.header("dozo-source-site")), (Some("peer"), Some(HOME)));
        let content = await_whole(&visiting, &name);
        assert_eq!((content.home.as_str(), content.client.as_str()), (HOME, carol.name.as_str()));
        assert_eq!(content.len, 9 << 20);
        let day = 24 * 3_600_000;
        assert!(content.expires.0.abs_diff(unix_millis() + day) < 60_000, "{content:?}");

        let second = visiting.get_content(&name).expect(200);
        assert!(second.body == bytes, "the bytes differ");
        assert_eq!((second.header("dozo-source"), second.header("dozo-class")), (Some("hit"), Some("reference")));
        let part = visiting.send("GET", &format!("/v1/contents/{name}"), &[("range", "bytes=8000000-8999999")], &[]);
        let part = part.expect(206);
        assert!(part.body == bytes[8_000_000..9_000_000], "the bytes differ");
        // A part belongs to the delivery before it, unless that was known to be complete by then.
        let deliveries: HashSet<_> = [&first, &second, &part].map(|a| a.header("dozo-delivery").unwrap()).into();
        assert!(deliveries.len() >= 2, "{deliveries:?}");

        // It is nobody's here: in no library, in no holders list, not announced.
        let info = cluster.lookup(&name).unwrap();
        assert!(info.sites.iter().all(|site| site.as_str() != VISITED), "{info:?}");
        let operator = cluster.operator(cluster.gateway(VISITED));
        let path = format!("/v1/peer/who-holds?name={}", common::client::encode(&name));
        let holders: Value = operator.get(&path).expect(200).json();
        assert_eq!((holders["clients_total"].as_u64(), holders["hash"].as_str()), (Some(0), None), "{holders}");
        let row: LibraryRow = carol.get(&format!("/v1/library/{name}")).expect(200).json();
        assert_eq!(row.deliveries, deliveries.len() as u64, "and in the library at home");
        // The operator sees it, other clients do not.
        let path = format!("/v1/peer/temporary?client={}", carol.name);
        let all: TemporaryPage = operator.get(&path).expect(200).json();
        assert_eq!(all.contents.len(), 1);
        let dave = cluster.new_client("dave", HOME).at(cluster.gateway(VISITED));
        assert!(kept(&dave).is_empty());
        let others = dave.get(&format!("/v1/temporary?client={}", carol.name));
        assert_eq!(others.expect(403).code(), "forbidden");
    }

    fn a_visitor_costs_no_second_copy_of_what_the_site_has(cluster) {
        let alice = cluster.new_client("alice", HOME);
        let bob = cluster.new_client("bob", VISITED);
        let carol = cluster.new_client("carol", HOME);
        let visiting = carol.at(cluster.gateway(VISITED));
        let name = format!("{}/film", cluster.bucket(&alice, "public"));
        let bytes = fresh_bytes(6 << 20);
        alice.put_content(&name, &bytes).expect(201);
        assert!(bob.get_content(&name).expect(200).body == bytes);
        let usage = |client: &Client| -> Value {
            let operator = cluster.operator(cluster.gateway(VISITED));
            operator.get(&format!("/v1/peer/usage?client={}", client.name)).expect(200).json()
        };
        eventually("what bob holds is counted", SOON, || {
            let usage = usage(&bob);
            if usage["unique_bytes"] == bytes.len() { Ok(()) } else { Err(usage.to_string()) }
        });
        let got = visiting.get_content(&name).expect(200);
        assert!(got.body == bytes, "the bytes differ");
        await_whole(&visiting, &name);
        // The same bytes, shared by both: half of them each.
        eventually("the visitor shares bob's bytes", SOON, || {
            let (bobs, carols) = (usage(&bob), usage(&carol));
            let shared = bobs["shared_held_bytes"] == bytes.len() && carols["shared_held_bytes"] == bytes.len();
            let none_alone = bobs["unique_bytes"] == 0 && carols["unique_bytes"] == 0;
            if shared && none_alone { Ok(()) } else { Err(format!("{bobs} {carols}")) }
        });
    }

    fn a_visitor_seeks_while_the_content_comes_in(cluster) {
        let carol = cluster.new_client("carol", HOME);
        let visiting = carol.at(cluster.gateway(VISITED));
        let name = format!("{}/long", cluster.bucket(&carol, "private"));
        let len = 90 << 20;
        let bytes = fresh_bytes(len);
        carol.put_content(&name, &bytes).expect(201);
        let path = format!("/v1/contents/{name}");
        // More than 64 chunks, so their list is a chunk of its own; a slow reader at the beginning, seeks at the end.
        let mut slow = visiting.open("GET", &path, &[]).unwrap();
        let start = slow.read_exact(1 << 20).unwrap();
        assert!(start == bytes[..1 << 20], "the bytes differ");
        for from in [len - 1_000_000, len / 2, 5 << 20] {
            let range = format!("bytes={from}-{}", from + 99_999);
            let part = visiting.send("GET", &path, &[("range", &range)], &[]).expect(206);
            assert!(part.body == bytes[from..from + 100_000], "the bytes differ at {from}");
        }
        let rest = slow.finish().unwrap();
        assert!(rest.body == bytes[1 << 20..], "the bytes differ");
        await_whole(&visiting, &name);
    }

    fn a_visitors_quota_is_that_of_home(cluster) {
        let alice = cluster.new_client("alice", HOME);
        let carol = cluster.new_client("carol", HOME);
        let visiting = carol.at(cluster.gateway(VISITED));
        let bucket = cluster.bucket(&alice, "public");
        for n in 0..2 {
            alice.put_content(&format!("{bucket}/{n}"), &fresh_bytes(3000)).expect(201);
        }
        let search = cluster.operator(&cluster.endpoints.search.http);
        let limits = serde_json::json!({"quota_contents": 1});
        search.send_json("POST", &format!("/v1/clients/{}/limits", carol.name), &limits).expect(200);
        visiting.get_content(&format!("{bucket}/0")).expect(200);
        assert_eq!(visiting.get_content(&format!("{bucket}/1")).expect(507).code(), "quota_exceeded");
        // What the client holds it gets.
        visiting.get_content(&format!("{bucket}/0")).expect(200);
        assert!(kept(&visiting).iter().any(|content| content.name.as_str() == format!("{bucket}/0")));
    }
}

#[test]
fn home_collects_what_it_lacks_and_the_visited_site_passes_it_on_as_it_comes() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let carol = cluster.client("carol");
    let visiting = carol.at(cluster.gateway(VISITED));
    let film = std::fs::read(cluster.path("studio/film.bin")).unwrap();
    let got = visiting.get_content("studio/film.bin").expect(200);
    assert!(got.body == film, "the bytes differ");
    assert_eq!(got.header("dozo-class"), Some("purchase"));
    let [service, content] = booked(&cluster, got.header("dozo-delivery").unwrap());
    assert_eq!((service["home"].as_str(), service["surrogate"].as_str()), (Some(HOME), Some(VISITED)));
    assert_eq!(service["charge_micros"].as_u64(), Some(service_fee_micros(film.len())));
    assert_eq!(content["charge_micros"].as_u64(), Some(10_000_000));
    // Home has it now, for its client; the visited site has it for a while.
    let info = cluster.lookup("studio/film.bin").unwrap();
    assert!(info.sites.iter().any(|site| site.as_str() == HOME), "{info:?}");
    assert!(info.sites.iter().all(|site| site.as_str() != VISITED), "{info:?}");
    await_whole(&visiting, "studio/film.bin");
    let before = fetched(&cluster, VISITED);
    visiting.get_content("studio/film.bin").expect(200);
    assert_eq!(fetched(&cluster, VISITED), before, "no bytes came from elsewhere");

    // Many visitors at once cost what one costs.
    let alice = cluster.new_client("alice", HOME);
    let name = format!("{}/premiere", cluster.bucket(&alice, "public"));
    let bytes = fresh_bytes(12 << 20);
    alice.put_content(&name, &bytes).expect(201);
    let visitors: Vec<Client> =
        (0..6).map(|_| cluster.new_client("fan", HOME).at(cluster.gateway(VISITED))).collect();
    std::thread::scope(|scope| {
        for visitor in &visitors {
            let (name, bytes) = (&name, &bytes);
            scope.spawn(move || assert!(visitor.get_content(name).expect(200).body == *bytes));
        }
    });
    assert_eq!(fetched(&cluster, VISITED) - before, bytes.len() as u64, "each chunk was fetched once");
    for visitor in &visitors {
        await_whole(visitor, &name);
        cluster.await_billed(visitor, &[("complete", 1)]);
    }
}

#[test]
fn through_however_many_gateways_visitors_and_clients_of_the_site_cost_one_collection() {
    let link = Link::new();
    let osaka_through = Some(link.http.clone());
    // Slow links make long deliveries.
    let options =
        Options { gateways: 2, osaka_through, cache_bytes: 0, join_window_ms: 30_000, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    link.lead_to(cluster.gateway(HOME));
    let gateways = [0, 1].map(|n| cluster.site(VISITED).gateways[n].http.clone());
    let carol = cluster.client("carol");
    let bucket = cluster.bucket(&carol, "public");
    let collections = || {
        let of = |n| cluster.metric(&format!("{VISITED}.g{n}"), "dozo_gateway_collections_total", "");
        of(1) + of(2)
    };
    // More than 64 chunks: their list is collected, too. Only visitors; both kinds, the visitors first; the clients of
    // the site first.
    for (n, residents) in [0, 4, 4].into_iter().enumerate() {
        let (name, bytes) = (format!("{bucket}/{n}"), fresh_bytes(80 << 20));
        carol.put_content(&name, &bytes).expect(201);
        link.slow_down(40 << 20);
        let visitors: Vec<Client> = (0..6).map(|_| cluster.new_client("fan", HOME)).collect();
        let residents: Vec<Client> = (0..residents).map(|_| cluster.new_client("fan", VISITED)).collect();
        let clients: Vec<&Client> = match n {
            2 => residents.iter().chain(&visitors).collect(),
            _ => visitors.iter().chain(&residents).collect(),
        };
        let before = (fetched(&cluster, VISITED), link.carried_bytes(), collections());
        std::thread::scope(|scope| {
            for (place, client) in clients.iter().enumerate() {
                let (name, bytes) = (&name, &bytes);
                let client = client.at(&gateways[place % 2]);
                scope.spawn(move || assert!(client.get_content(name).expect(200).body == *bytes));
                // The first has begun when the others come.
                eventually("it is being collected", SOON, || match collections() - before.2 {
                    1.0 => Ok(()),
                    begun => Err(format!("{begun} collections")),
                });
            }
        });
        let carried = link.carried_bytes() - before.1;
        println!(
            "{} clients: {carried} bytes came over the link for {} of content",
            clients.len(),
            bytes.len()
        );
        assert_eq!(collections() - before.2, 1.0);
        // The list has 36 bytes a chunk, and is counted where it is asked for by itself.
        let fetched = fetched(&cluster, VISITED) - before.0 - bytes.len() as u64;
        assert!(fetched < 10_000, "{fetched} bytes more than the content were fetched");
        assert!(carried < bytes.len() as u64 * 102 / 100, "{carried} bytes came over the link");
        link.slow_down(0);
        for visitor in &visitors {
            let content = await_whole(&visitor.at(&gateways[0]), &name);
            assert_eq!(content.len, bytes.len() as u64);
            cluster.await_billed(visitor, &[("complete", 1)]);
        }
        let info = cluster.lookup(&name).unwrap();
        let is_held = info.sites.iter().any(|site| site.as_str() == VISITED);
        assert_eq!(is_held, !residents.is_empty(), "{info:?}");
        // Nothing is fetched for it any more, and the chunks are those of all.
        let before = link.carried_bytes();
        for client in visitors.iter().chain(&residents).take(8) {
            assert!(client.at(&gateways[1]).get_content(&name).expect(200).body == bytes);
        }
        let carried = link.carried_bytes() - before;
        assert!(carried < 1 << 20, "{carried} bytes came over the link");
    }
}

#[test]
fn a_visited_gateway_that_is_killed_in_the_middle_is_followed_by_another_and_nothing_is_billed_twice() {
    let options = Options { cache_bytes: 0, gateways: 2, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let (alice, carol) = (cluster.client("alice"), cluster.client("carol"));
    let [first, second] = [0, 1].map(|n| carol.at(&cluster.site(VISITED).gateways[n].http));
    let bytes = fresh_bytes(48 << 20);
    carol.put_content("carol/long", &bytes).expect(201);
    let stored = || -> u64 {
        let nodes = cluster.site(VISITED).nodes.iter();
        nodes.filter_map(|n| cluster.node_status(&format!("{VISITED}.{}", n.name))["chunks"].as_u64()).sum()
    };
    let before = stored();
    let mut download = first.open("GET", "/v1/contents/carol/long", &[]).unwrap();
    download.read_exact(1 << 20).unwrap();
    eventually("some of it is stored", SOON, || match stored() - before {
        0 => Err("nothing is".to_owned()),
        _ => Ok(()),
    });
    cluster.kill("tokyo.g1");
    assert!(download.finish().is_err(), "it broke off");
    // What came in before is here; the other gateway goes on from there.
    let got = second.get_content("carol/long").expect(200);
    assert!(got.body == bytes, "the bytes differ");
    await_whole(&second, "carol/long");
    let fetched = cluster.metric("tokyo.g2", "dozo_gateway_collected_bytes_total", "");
    assert!(fetched < bytes.len() as f64, "{fetched} bytes were fetched anew");
    // Nobody knows how much of the first went out; it is listed and not billed.
    cluster.await_billed(&carol, &[("complete", 1), ("recovered", 1)]);
    cluster.restart("tokyo.g1");
    cluster.await_ready("tokyo.g1");
    // What home refuses is gone from here, too.
    let bucket = cluster.bucket(&alice, "public");
    let path = format!("/v1/contents/{bucket}/leaflet");
    alice.send("PUT", &path, &[], &bytes[..5000]).expect(201);
    second.get(&path).expect(200);
    await_whole(&second, &format!("{bucket}/leaflet"));
    alice.send("DELETE", &path, &[], &[]).expect(204);
    carol.send("DELETE", &format!("/v1/library/{bucket}/leaflet"), &[], &[]).expect(204);
    eventually("home refuses it", SOON, || {
        let answer = second.get(&path);
        if answer.status == 404 { Ok(()) } else { Err(answer.status.to_string()) }
    });
    let kept = kept(&second);
    assert!(kept.iter().all(|content| content.name.as_str() == "carol/long"), "{kept:?}");
}

#[test]
fn the_operator_sees_what_is_kept_for_whom_and_until_when() {
    let cluster = Cluster::shared(Mode::OneProcess);
    let carol = cluster.new_client("carol", HOME);
    let visiting = carol.at(cluster.gateway(VISITED));
    let name = format!("{}/notes", cluster.bucket(&carol, "private"));
    carol.put_content(&name, &fresh_bytes(300_000)).expect(201);
    visiting.get_content(&name).expect(200);
    await_whole(&visiting, &name);
    let dozo = |arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::process::dozo());
        command.args(arguments).env("DOZO_ENDPOINTS", cluster.path("endpoints.json"));
        let output = command.output().expect("dozo runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let table = dozo(&["temporary", "list", "--client", &carol.name]);
    let line = table.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("{table}"));
    for word in [VISITED, HOME, &carol.name, "whole", "24.0 h"] {
        assert!(line.contains(word), "no {word} in {table}");
    }
    let listed: Value =
        serde_json::from_str(&dozo(&["temporary", "list", "--site", VISITED, "--json"])).unwrap();
    let listed = listed.as_array().unwrap();
    let found = listed.iter().find(|content| content["name"] == name).unwrap();
    assert_eq!((found["len"].as_u64(), found["complete"].as_bool()), (Some(300_000), Some(true)));
    let at_home: Value =
        serde_json::from_str(&dozo(&["temporary", "list", "--site", HOME, "--json"])).unwrap();
    assert!(at_home.as_array().unwrap().iter().all(|content| content["name"] != name), "{at_home}");
    eventually("the usage of the site tells of the visitor", SOON, || {
        let table = dozo(&["usage"]);
        let visiting = format!("{} (visiting)", carol.name);
        if table.contains(&visiting) { Ok(()) } else { Err(table) }
    });
    eventually("the status tells of it", SOON, || {
        let status = dozo(&["status"]);
        if status.contains("for visitors") { Ok(()) } else { Err(status) }
    });
}

#[test]
fn what_is_kept_goes_when_its_time_is_over_and_its_space_comes_back() {
    let options = Options {
        temporary_ttl_ms: Some(15_000),
        chunk_grace_ms: Some(300),
        replicas: Some(2),
        nodes: 3,
        cache_bytes: 0,
        ..Options::default()
    };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let (alice, carol) = (cluster.client("alice"), cluster.client("carol"));
    let visiting = carol.at(cluster.gateway(VISITED));
    let name = format!("{}/diary", cluster.bucket(&carol, "private"));
    let bytes = fresh_bytes(7 << 20);
    carol.put_content(&name, &bytes).expect(201);
    // Something that stays.
    alice.put_content("alice/stays", &fresh_bytes(3 << 20)).expect(201);
    let chunks = |cluster: &Cluster| -> u64 {
        let nodes = cluster.servers().into_iter().map(|(name, _)| name);
        let nodes = nodes.filter(|name| name.starts_with("tokyo.n") && cluster.is_running(name));
        nodes.map(|name| cluster.node_status(&name)["chunks"].as_u64().unwrap_or(0)).sum()
    };
    let before = chunks(&cluster);
    assert!(visiting.get_content(&name).expect(200).body == bytes, "the bytes differ");
    let content = await_whole(&visiting, &name);
    assert!(chunks(&cluster) > before);
    let contents = |cluster: &Cluster| -> f64 {
        let nodes = cluster.servers().into_iter().map(|(name, _)| name);
        let nodes = nodes.filter(|name| name.starts_with("tokyo.n") && cluster.is_running(name));
        nodes.map(|name| cluster.metric(&name, "dozo_node_temporary_contents", "")).sum()
    };
    eventually("the metric tells of it", SOON, || {
        if contents(&cluster) == 1.0 { Ok(()) } else { Err(contents(&cluster).to_string()) }
    });
    // Nodes restart and slots move meanwhile: it is forgotten by none of that.
    cluster.kill("tokyo.n1");
    cluster.restart("tokyo.n1");
    cluster.await_ready("tokyo.n1");
    let added = cluster.add_node(VISITED, "n4");
    cluster.await_ready(&added);
    // Used again, it lasts longer.
    assert!(visiting.get_content(&name).expect(200).body == bytes, "the bytes differ");
    eventually("a use prolongs it", SOON, || {
        let now = kept(&visiting);
        if now.iter().any(|c| c.expires > content.expires) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    eventually("it is not kept any more", SOON, || {
        let now = kept(&visiting);
        if now.is_empty() { Ok(()) } else { Err(format!("{now:?}")) }
    });
    eventually("its chunks are gone", Duration::from_secs(60), || {
        let now = chunks(&cluster);
        if now <= before { Ok(()) } else { Err(format!("{now} chunks, {before} before")) }
    });
    eventually("the metric tells of it", SOON, || {
        if contents(&cluster) == 0.0 { Ok(()) } else { Err(contents(&cluster).to_string()) }
    });
    // And it may come again.
    assert!(visiting.get_content(&name).expect(200).body == bytes, "the bytes differ");
}

#[test]
fn a_site_that_keeps_nothing_passes_on_what_home_has() {
    // On a busy machine so much takes longer than the other tests let a delivery go on without a word.
    let join_window_ms = 30_000;
    let options = Options { cache_bytes: 0, temporary_ttl_ms: Some(0), join_window_ms, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let carol = cluster.client("carol");
    let visiting = carol.at(cluster.gateway(VISITED));
    let bytes = fresh_bytes(70 << 20);
    carol.put_content("carol/long", &bytes).expect(201);
    for _ in 0..2 {
        assert!(visiting.get_content("carol/long").expect(200).body == bytes, "the bytes differ");
        assert!(kept(&visiting).is_empty());
    }
    assert!(fetched(&cluster, VISITED) >= 2 * bytes.len() as u64, "each time anew");
    cluster.await_billed(&carol, &[("complete", 2)]);
}

/// The servers of a site, gateways last.
fn servers_of(cluster: &Cluster, site: &str) -> Vec<String> {
    let prefix = format!("{site}.");
    cluster.servers().into_iter().map(|(name, _)| name).filter(|name| name.starts_with(&prefix)).collect()
}

fn kill_site(cluster: &Cluster, site: &str) {
    servers_of(cluster, site).iter().for_each(|name| cluster.kill(name));
}

#[track_caller]
fn restart_site(cluster: &Cluster, site: &str) {
    let servers = servers_of(cluster, site);
    servers.iter().for_each(|name| cluster.restart(name));
    servers.iter().for_each(|name| cluster.await_ready(name));
}

#[test]
fn while_home_is_away_what_is_kept_is_served_and_booked_once_and_nothing_else_is() {
    // Home waits so long for the end of what it recorded, counted from its restart.
    let join_window_ms = 60_000;
    let options =
        Options { cache_bytes: 0, replicas: Some(2), gateways: 2, join_window_ms, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let alice = cluster.new_client("alice", HOME);
    let carol = cluster.new_client("carol", HOME);
    let visiting = carol.at(cluster.gateway(VISITED));
    let bucket = cluster.bucket(&alice, "public");
    let (name, other) = (format!("{bucket}/film"), format!("{bucket}/other"));
    let (path, bytes) = (format!("/v1/contents/{name}"), fresh_bytes(5 << 20));
    alice.put_content(&name, &bytes).expect(201);
    alice.put_content(&other, &bytes[..3000]).expect(201);
    let first = visiting.get_content(&name).expect(200);
    await_whole(&visiting, &name);
    // One that is under way when home dies: the rest of it is here, and its end waits until home is back.
    let mut under_way = visiting.open("GET", &path, &[]).unwrap();
    let begun_at_home = under_way.header("dozo-delivery").unwrap().to_owned();
    let start = under_way.read_exact(1 << 20).unwrap();
    kill_site(&cluster, HOME);
    let rest = under_way.finish().unwrap();
    assert!([start, rest.body].concat() == bytes, "the bytes differ");

    let away = visiting.get_content(&name).expect(200);
    assert!(away.body == bytes, "the bytes differ");
    assert_eq!((away.header("dozo-class"), away.header("dozo-source")), (Some("reference"), Some("hit")));
    let away = away.header("dozo-delivery").unwrap().to_owned();
    let [service, content] = booked(&cluster, &away);
    assert_eq!((service["home"].as_str(), service["surrogate"].as_str()), (Some(HOME), Some(VISITED)));
    assert_eq!(service["charge_micros"].as_u64(), Some(service_fee_micros(bytes.len())));
    assert_eq!(content["charge_micros"].as_u64(), Some(1_000_000), "the price of a reference");
    assert!(
        service["node"].as_str().unwrap().starts_with(VISITED),
        "recorded where it was delivered: {service}"
    );
    // Seeks of a player are one delivery.
    let parts: Vec<_> = ["bytes=0-2999999", "bytes=3000000-"]
        .map(|range| visiting.send("GET", &path, &[("range", range)], &[]).expect(206))
        .into();
    assert!([parts[0].body.clone(), parts[1].body.clone()].concat() == bytes, "the bytes differ");
    assert_eq!(parts[0].header("dozo-delivery"), parts[1].header("dozo-delivery"));
    let etag = crate::etag_of(&bytes);
    visiting.send("GET", &path, &[("if-none-match", &etag)], &[]).expect(304);
    let head = visiting.send("HEAD", &path, &[], &[]).expect(200);
    assert_eq!(head.header("content-length"), Some((5 << 20).to_string().as_str()));
    // What is not kept here, or not for this client, is refused, and told why.
    let refused = visiting.get_content(&other).expect(503);
    assert_eq!(refused.code(), "source_unavailable");
    assert!(refused.text().contains(HOME), "{}", refused.text());
    let dave = cluster.new_client("dave", HOME).at(cluster.gateway(VISITED));
    assert_eq!(dave.get_content(&name).expect(503).code(), "source_unavailable");

    // The gateway that has the end for home is killed, too; not before it has told the ends that came after that one.
    booked(&cluster, parts[0].header("dozo-delivery").unwrap());
    eventually("a node has what the gateway had to tell", SOON, || {
        let pending = cluster.metric("tokyo.g1", "dozo_gateway_ends_pending", "");
        if pending == 0.0 { Ok(()) } else { Err(pending.to_string()) }
    });
    cluster.kill("tokyo.g1");
    cluster.restart("tokyo.g1");
    cluster.await_ready("tokyo.g1");
    restart_site(&cluster, HOME);
    eventually("home has the end that waited for it", Duration::from_secs(90), || {
        let path = format!("/v1/records?delivery={begun_at_home}");
        let found: Value = cluster.billing(true).get(&path).expect(200).json();
        if found["records"].as_array().is_some_and(|records| records.len() == 1) {
            return Ok(());
        }
        Err(found.to_string())
    });
    cluster.await_billed(&carol, &[("complete", 4)]);
    let [service, _] = booked(&cluster, &begun_at_home);
    assert_eq!(
        (service["status"].as_str(), service["bytes_sent"].as_u64()),
        (Some("complete"), Some(5 << 20))
    );
    assert!(service["node"].as_str().unwrap().starts_with(HOME), "home recorded its begin: {service}");
    let [service, _] = booked(&cluster, first.header("dozo-delivery").unwrap());
    assert_eq!(service["class"].as_str(), Some("purchase"));
    // As before.
    let again = visiting.get_content(&name).expect(200);
    assert_eq!(again.header("dozo-class"), Some("reference"));
    visiting.get_content(&other).expect(200);
    for totals in cluster.totals() {
        assert_eq!(totals.imbalance_micros, 0);
        assert!(!totals.records.contains_key("recovered"), "{totals:?}");
    }
}

#[test]
fn home_that_dies_in_the_middle_is_followed_by_another_holder() {
    // Home waits so long for the end of what it recorded, counted from its restart.
    let options = Options { cache_bytes: 0, join_window_ms: 60_000, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let carol = cluster.client("carol");
    let visiting = carol.at(cluster.gateway(VISITED));
    // Held at home and, as the original, at the origin; too much for the moment until home is dead.
    let (name, bytes) = ("studio/long.bin", fresh_bytes(120 << 20));
    std::fs::write(cluster.path(name), &bytes).unwrap();
    eventually("search knows the original", SOON, || cluster.lookup(name).map(drop));
    carol.get_content(name).expect(200);
    let mut download = visiting.open("GET", &format!("/v1/contents/{name}"), &[]).unwrap();
    assert_eq!(download.status, 200);
    let start = download.read_exact(200_000).unwrap();
    kill_site(&cluster, HOME);
    let rest = download.finish().unwrap();
    assert!([start, rest.body].concat() == bytes, "the bytes differ");
    await_whole(&visiting, name);
    let from_origin = cluster.metric("tokyo.g1", "dozo_gateway_collected_bytes_total", "origin");
    assert!(from_origin > 0.0, "home was dead before it had sent all");
    restart_site(&cluster, HOME);
    cluster.await_billed(&carol, &[("complete", 2)]);
}
