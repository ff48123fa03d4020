//! The directory under trouble: sites that fall silent, data that is lost, another database.

use std::time::{Duration, Instant};

use common::cluster::{ClusterMap, SiteEntry};
use common::placement::{SLOT_COUNT, Slot, preferred_owner};
use serde_json::json;

use crate::cluster::{Cluster, Mode, Options, SITES, SOON, eventually};
use crate::http::Client;
use crate::operation::run_dozo;
use crate::{etag_of, fresh_bytes};
use database::testing::Postgres;

const TOKYO: [&str; 3] = ["tokyo.n1", "tokyo.n2", "tokyo.g1"];

/// Waits until carol's site gives these bytes; answers how long that took.
fn until_carol_gets(cluster: &Cluster, name: &str, bytes: &[u8]) -> Duration {
    let (begin, carol) = (Instant::now(), cluster.client("carol"));
    eventually("osaka gives the newest version", SOON, || {
        let answer = carol.try_send("GET", &format!("/v1/contents/{name}"), &[], &[]);
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.body == bytes {
            Ok(())
        } else {
            Err(format!("{} {:?}", answer.status, answer.header("etag")))
        }
    });
    begin.elapsed()
}

fn works_on_another_database(database: Option<String>) {
    let cluster =
        Cluster::start(Mode::ProcessPerServer, &Options { database, nodes: 1, ..Options::default() });
    let (alice, carol) = (cluster.client("alice"), cluster.client("carol"));
    let mut quickest = Duration::MAX;
    for round in 0..3 {
        let bytes = fresh_bytes(50_000);
        let answer = alice.put_content("alice/song", &bytes);
        assert_eq!(answer.status, if round == 0 { 201 } else { 200 }, "{}", answer.text());
        let took = until_carol_gets(&cluster, "alice/song", &bytes);
        if round > 0 {
            quickest = quickest.min(took);
        }
        assert_eq!(carol.get("/v1/contents/alice/song").header("etag"), Some(etag_of(&bytes).as_str()));
    }
    println!("a newer version reached the holding site within {quickest:?}");
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    eventually("search knows that osaka holds it", SOON, || {
        let info = cluster.lookup("alice/song")?;
        if info.sites.iter().any(|site| site.as_str() == "osaka") { Ok(()) } else { Err(format!("{info:?}")) }
    });
    let quickest = (0..3).map(|round| time_of_withdrawal(&cluster, &format!("alice/gone-{round}"))).min();
    println!("a withdrawal reached both holding sites within {quickest:?}");
    assert!(quickest < Some(Duration::from_secs(1)), "{quickest:?}");
}

/// How long it takes until no site sells a content any more that both hold.
fn time_of_withdrawal(cluster: &Cluster, name: &str) -> Duration {
    let bytes = fresh_bytes(20_000);
    cluster.client("alice").put_content(name, &bytes).expect(201);
    until_carol_gets(cluster, name, &bytes);
    // Who asks for the head alone buys nothing.
    let path = format!("/v1/contents/{name}");
    let strangers = SITES.map(|site| cluster.new_client("late", site));
    strangers.iter().for_each(|new| drop(new.send("HEAD", &path, &[], &[]).expect(200)));
    let begin = Instant::now();
    cluster.client("alice").send("DELETE", &path, &[], &[]).expect(204);
    for (new, site) in strangers.iter().zip(SITES) {
        eventually(&format!("{site} sells it no more"), SOON, || {
            match new.send("HEAD", &path, &[], &[]).status {
                404 => Ok(()),
                other => Err(other.to_string()),
            }
        });
    }
    begin.elapsed()
}

#[test]
fn the_whole_system_works_with_its_directory_in_postgresql() {
    let Some(server) = Postgres::start("-c fsync=off") else { return };
    works_on_another_database(Some(server.database("dozo")));
}

#[test]
fn a_silent_site_is_not_offered_and_a_directory_that_lost_data_is_told_everything_again() {
    let options = Options { lease_ms: Some(1_500), ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let alice = cluster.client("alice");
    let put = |name: &str| alice.put_content(name, &fresh_bytes(1_000)).expect(201);
    let holds = |name: &str, site: &str| {
        cluster.lookup(name).is_ok_and(|info| info.sites.iter().any(|each| each.as_str() == site))
    };
    let until = |what: &str, check: &dyn Fn() -> bool| {
        eventually(what, SOON, || if check() { Ok(()) } else { Err("not yet".to_owned()) });
    };
    let old: Vec<String> = (0..12).map(|i| format!("alice/old-{i}")).collect();
    old.iter().for_each(|name| drop(put(name)));
    until("search knows them", &|| old.iter().all(|name| holds(name, "tokyo")));

    // Negative feedback counts at once, and what was told wrongly comes back with a snapshot.
    let search = cluster.operator(&cluster.endpoints.search.http);
    let version = cluster.lookup(&old[0]).unwrap().version;
    let missing = json!({"name": old[0], "version": version, "at": {"site": "tokyo"}});
    search.send_json("POST", "/v1/contents/missing", &missing).expect(200);
    assert!(!holds(&old[0], "tokyo"));
    let asked = search.send_json("POST", "/v1/sites/tokyo/resync", &json!(null)).expect(200);
    assert_eq!(asked.json::<serde_json::Value>()["nodes"], 2);
    until("the snapshot confirms it", &|| holds(&old[0], "tokyo"));

    // A backup is taken, things go on, and the backup is put back.
    let stop = || {
        cluster.terminate("search");
        assert!(cluster.await_end("search", SOON).success());
    };
    let folder = cluster.path("search");
    stop();
    std::fs::copy(folder.join("search.db"), folder.join("backup")).unwrap();
    cluster.restart("search");
    cluster.await_ready("search");
    let new: Vec<String> = (0..12).map(|i| format!("alice/new-{i}")).collect();
    new.iter().for_each(|name| drop(put(name)));
    let gone = &old[11];
    alice.send("DELETE", &format!("/v1/contents/{gone}"), &[], &[]).expect(204);
    let as_told = |name: &str| cluster.lookup(name).map(|info| (info.version, info.sites));
    eventually("search knows what changed", SOON, || {
        let unknown: Vec<_> =
            new.iter().filter(|name| !holds(name, "tokyo")).map(|name| (name, as_told(name))).collect();
        if unknown.is_empty() && !holds(gone, "tokyo") {
            Ok(())
        } else {
            Err(format!("not of {unknown:?}; of what is gone: {:?}", as_told(gone)))
        }
    });
    stop();
    for file in ["search.db", "search.db-wal", "search.db-shm"] {
        let _gone = std::fs::remove_file(folder.join(file));
    }
    std::fs::rename(folder.join("backup"), folder.join("search.db")).unwrap();
    cluster.restart("search");
    cluster.await_ready("search");
    until("search knows again what it lost, and never forgot what it knew", &|| {
        assert!(old[..11].iter().all(|name| holds(name, "tokyo")));
        new.iter().all(|name| holds(name, "tokyo")) && !holds(gone, "tokyo")
    });
    // What the last client of a site drops is told as always.
    let bytes = fresh_bytes(1_000);
    alice.put_content("alice/last", &bytes).expect(201);
    until_carol_gets(&cluster, "alice/last", &bytes);
    until("announcements go on", &|| holds("alice/last", "tokyo") && holds("alice/last", "osaka"));
    cluster.client("carol").send("DELETE", "/v1/library/alice/last", &[], &[]).expect(204);
    until("osaka has let it go, tokyo has not", &|| {
        holds("alice/last", "tokyo") && !holds("alice/last", "osaka")
    });

    TOKYO.iter().for_each(|name| cluster.kill(name));
    until("a silent site is not offered", &|| {
        cluster.lookup(&old[0]).is_err_and(|answer| answer.contains("source_unavailable"))
    });
    TOKYO.iter().for_each(|name| cluster.restart(name));
    until("it is offered again when it reports", &|| holds(&old[0], "tokyo"));
}

#[test]
fn a_directory_that_is_older_than_its_nodes_goes_on_from_their_map() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let folder = cluster.path("search");
    let map = || -> ClusterMap {
        let search = cluster.operator(&cluster.endpoints.search.http);
        search.get("/v1/map?after=0&wait_ms=0").expect(200).json()
    };
    // Owners are compared below, so none is to be on the way to another.
    eventually("all slots are where they belong", SOON, || {
        let map = map();
        let is_away = |site: &SiteEntry, slot: Slot| {
            let owner = site.slot_owner(slot).map(|node| &node.id);
            owner.is_none() || owner != preferred_owner(site, slot).map(|node| &node.id)
        };
        let slots = || (0..SLOT_COUNT).map(Slot);
        let away = |site: &SiteEntry| slots().filter(|slot| is_away(site, *slot)).count();
        let away: usize = map.sites.iter().map(away).sum();
        if away == 0 { Ok(()) } else { Err(format!("{away} are not")) }
    });
    let contents: Vec<(String, Vec<u8>)> =
        (0..16).map(|i| (format!("alice/photo-{i}"), fresh_bytes(3_000 + i))).collect();
    let put = |(name, bytes): &(String, Vec<u8>)| {
        drop(cluster.client("alice").put_content(name, bytes).expect(201));
    };
    let (early, late) = contents.split_at(8);
    early.iter().for_each(put);
    run_dozo(&cluster, &["search", "backup", "copy", "--data-dir", folder.to_str().unwrap()]);

    // A node is lost, the other one serves its rows, and gets new ones.
    cluster.kill("tokyo.n2");
    late.iter().for_each(put);
    let before = map();
    let tokyo = |map: &ClusterMap| map.site(&"tokyo".parse().unwrap()).unwrap().clone();
    let decided = |map: &ClusterMap| -> Vec<(u64, u16)> {
        tokyo(map).nodes.iter().map(|node| (node.shard.term, node.shard.primary)).collect()
    };
    assert!(
        tokyo(&before).nodes.iter().all(|node| node.shard.primary == tokyo(&before).nodes[0].shard.primary)
    );

    let replace = |copy: Option<&str>| {
        cluster.terminate("search");
        assert!(cluster.await_end("search", SOON).success());
        for file in ["search.db", "search.db-wal", "search.db-shm"] {
            let _gone = std::fs::remove_file(folder.join(file));
        }
        if let Some(copy) = copy {
            std::fs::rename(cluster.path(copy), folder.join("search.db")).unwrap();
        }
        cluster.restart("search");
        cluster.await_ready("search");
        eventually("search goes on from the nodes' map", SOON, || {
            let map = map();
            let is_taken_over = map.follows(&before.id()) && decided(&map) == decided(&before);
            if is_taken_over { Ok(()) } else { Err(format!("{:?} {:?}", map.id(), map.runs)) }
        });
        assert_eq!(tokyo(&map()).slot_owners, tokyo(&before).slot_owners);
    };
    let all_are_there = |alice: &Client| {
        for (name, bytes) in &contents {
            eventually(&format!("{name} is there"), SOON, || {
                let answer = alice.try_send("GET", &format!("/v1/contents/{name}"), &[], &[]);
                let answer = answer.map_err(|error| error.to_string())?;
                if answer.body == *bytes { Ok(()) } else { Err(answer.text()) }
            });
        }
    };
    replace(Some("copy"));
    all_are_there(&cluster.client("alice"));

    // Clients and buckets are on no node: without a copy they are made anew, and find what they had.
    replace(None);
    let keys = cluster.add_client("alice", "tokyo");
    let search = cluster.operator(&cluster.endpoints.search.http);
    let bucket = json!({"provider": "alice", "visibility": "public"});
    search.send_json("PUT", "/v1/buckets/alice", &bucket).expect(200);
    let alice = Client::new("alice", cluster.gateway("tokyo"), &keys.token);
    all_are_there(&alice);
    cluster.restart("tokyo.n2");
    cluster.await_ready("tokyo.n2");
    eventually("the lost node serves its rows again", 3 * SOON, || {
        let site = tokyo(&map());
        let states: Vec<&str> = site.nodes.iter().map(|node| node.shown_state(&site)).collect();
        if states == ["active", "active"] { Ok(()) } else { Err(states.join(" ")) }
    });
    all_are_there(&alice);
}

#[test]
fn the_command_line_finds_and_explains() {
    let cluster = Cluster::shared(Mode::OneProcess);
    let alice = cluster.client("alice");
    let bytes = fresh_bytes(2_000);
    alice.put_content("alice/finding/Needle-100%.txt", &bytes).expect(201);
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&run_dozo(cluster, &[arguments, &["--json"]].concat())).unwrap()
    };
    let name = "alice/finding/Needle-100%.txt";
    let found = json(&["search", "find", "needle-100%"]);
    assert_eq!(found["contents"][0]["name"], name);
    let hash = common::hash::ContentHash::of(&bytes).to_string();
    assert_eq!(json(&["search", "lookup", "--hash", &hash])["contents"][0]["name"], name);
    let of_alice = json(&["search", "lookup", "--provider", "alice", "--after", "alice/finding/"]);
    assert_eq!(of_alice["contents"][0]["name"], name);
    assert_eq!(json(&["search", "lookup", name])["sites"], json!(["tokyo"]));
    let explained = json(&["search", "explain", name, "--from", "osaka"]);
    assert_eq!(explained["holders"][0]["holder"]["site"], "tokyo");
    assert_eq!(explained["holders"][0]["is_silent"], false);
    let first = &explained["ranking"]["candidates"][0];
    assert_eq!((first["source"].as_str(), first["chosen"].as_bool()), (Some("site:tokyo"), Some(true)));
    let text = run_dozo(cluster, &["search", "explain", name, "--from", "osaka"]);
    assert!(text.contains("site tokyo") && text.contains("as osaka.g1 ranks them"), "{text}");

    let set = |arguments: &[&str]| run_dozo(cluster, &[&["site"], arguments].concat());
    assert!(set(&["set", "tokyo", "--zone", "east"]).contains("site tokyo is in zone east"));
    assert!(set(&["distance", "osaka", "east", "3"]).contains("east is at distance 3 from site osaka"));
    let candidate =
        || json(&["search", "explain", name, "--from", "osaka"])["ranking"]["candidates"][0].clone();
    let becomes = |what: &str, expected: serde_json::Value| {
        eventually(&format!("osaka goes by {what}"), SOON, || {
            let candidate = candidate();
            let now = json!([candidate["same_zone"], candidate["distance"]]);
            if now == expected { Ok(()) } else { Err(candidate.to_string()) }
        });
    };
    becomes("the distance of the zone", json!([false, 3]));
    set(&["distance", "osaka", "tokyo", "7"]);
    becomes("the distance of the site", json!([false, 7]));
    set(&["set", "osaka", "--zone", "east"]);
    becomes("the zone", json!([true, 7]));
    let sites = json(&["site", "list"]);
    let osaka = sites.as_array().unwrap().iter().find(|site| site["site"] == "osaka").unwrap();
    assert_eq!((&osaka["zone"], &osaka["distances"]), (&json!("east"), &json!({"east": 3, "tokyo": 7})));
    let text = set(&["list"]);
    assert!(text.contains("east 3, tokyo 7"), "{text}");
    for undo in [
        &["set", "tokyo", "--zone", "none"][..],
        &["set", "osaka", "--zone", "none"],
        &["distance", "osaka", "east", "none"],
        &["distance", "osaka", "tokyo", "none"],
    ] {
        set(undo);
    }
    becomes("nothing of it", json!([false, null]));
}
