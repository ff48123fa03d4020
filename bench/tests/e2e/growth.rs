//! Adding storage (F9): a node joins a running site and takes its share; nothing stops.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{Cluster, Mode, Options, SOON, eventually};
use crate::fresh_bytes;

fn join_a_third_node(cluster: &Cluster) {
    let (base, secret) = (cluster.port_base, cluster.path("cluster-secret"));
    let data_dir = cluster.path("tokyo.n3");
    let listen = format!("127.0.0.1:{}", base + 40);
    let admin = format!("127.0.0.1:{}", base + 90);
    let store = format!("file:{}?size=2GiB", data_dir.join("store").display());
    std::fs::create_dir_all(&data_dir).unwrap();
    let (data_dir, secret) = (data_dir.display().to_string(), secret.display().to_string());
    cluster.spawn_server(
        "tokyo.n3",
        &[
            "storage-node",
            "--name",
            "n3",
            "--site",
            "tokyo",
            "--search",
            &cluster.endpoints.search.http,
            "--store",
            &store,
            "--data-dir",
            &data_dir,
            "--listen",
            &listen,
            "--admin",
            &admin,
            "--cluster-secret-file",
            &secret,
        ],
    );
}

fn a_node_joins(mode: Mode) {
    let cluster = Cluster::start(mode, &Options::default());
    let (alice, bob) = (cluster.client("alice"), cluster.client("bob"));
    let old: Vec<_> = (0..40).map(|i| (format!("alice/old-{i}"), fresh_bytes(50_000))).collect();
    for (name, bytes) in &old {
        alice.put_content(name, bytes).expect(201);
        bob.get_content(name).expect(200);
    }
    // Readers go on while the node joins and takes over slots.
    let (stop, joined) = (AtomicBool::new(false), AtomicBool::new(false));
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let (name, bytes) = &old[reads % old.len()];
                let answer = bob.get_content(name).expect(200);
                assert!(answer.body == *bytes, "{name}");
                assert_eq!(answer.header("dozo-class"), Some("reference"), "{name}");
                reads += 1;
            }
            reads
        });
        join_a_third_node(&cluster);
        let admin = format!("http://127.0.0.1:{}", cluster.port_base + 90);
        let map = || -> common::cluster::ClusterMap {
            cluster.operator(&cluster.server("tokyo.g1").admin).get("/v1/map").expect(200).json()
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("the new node is ready", SOON, || {
                let answer = cluster.operator(&admin).try_send("GET", "/readyz?verbose", &[], &[]);
                let answer = answer.map_err(|e| format!("{e}: {}", cluster.log("tokyo.n3")))?;
                if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
            });
            eventually("the new node owns its third of the slots", SOON * 3, || {
                let map = map();
                let site = map.sites.iter().find(|site| site.id.as_str() == "tokyo").ok_or("no tokyo")?;
                let node = site.nodes.iter().find(|node| node.id.name() == "n3").ok_or("no n3")?;
                let slots = site.slots_owned_by(&node.id).count();
                if (240..=450).contains(&slots) { Ok(()) } else { Err(format!("{slots} slots")) }
            });
            joined.store(true, Ordering::Relaxed);
        }));
        stop.store(true, Ordering::Relaxed);
        let reads = reader.join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        reads.unwrap()
    });
    assert!(joined.load(Ordering::Relaxed) && reads > 0);
    let status = || -> serde_json::Value {
        let admin = format!("http://127.0.0.1:{}", cluster.port_base + 90);
        cluster.operator(&admin).get("/v1/node").expect(200).json()
    };
    let new: Vec<_> = (0..60).map(|i| (format!("alice/new-{i}"), fresh_bytes(50_000))).collect();
    for (name, bytes) in &new {
        alice.put_content(name, bytes).expect(201);
    }
    // Two copies of each: two thirds of all chunks, give or take what so few scatter. The old ones move there.
    eventually("the new node has its share of the chunks", SOON * 3, || {
        let chunks = status()["chunks"].as_u64().unwrap();
        if (50..=84).contains(&chunks) { Ok(()) } else { Err(format!("{chunks} of 100 chunks")) }
    });
    for (name, bytes) in new.iter().chain(&old) {
        assert!(bob.get_content(name).expect(200).body == *bytes, "{name}");
    }
    for (name, _) in &old {
        let answer = bob.get_content(name).expect(200);
        assert_eq!(answer.header("dozo-class"), Some("reference"), "{name}: bob holds it still");
    }
    let complete = 40 + reads as u64 + 60 + 40 + 40;
    cluster.await_billed(&bob, &[("complete", complete)]);
}

#[test]
fn a_node_joins_one_process_and_takes_its_share_while_everything_stays_readable() {
    a_node_joins(Mode::OneProcess);
}

#[test]
fn a_node_joins_separate_processes_and_takes_its_share_while_everything_stays_readable() {
    a_node_joins(Mode::ProcessPerServer);
}
