//! Backups of the books: taken while they are written, put back, and filled up again from the nodes' records.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::books::{billing, this_month};
use crate::cards::run;
use crate::cluster::{Cluster, Mode, Options, SOON, eventually};
use crate::fresh_bytes;

/// Nodes say how far they are each half minute; that is when a server that lost records is noticed by one that has
/// nothing new to send.
const HEAL_TIME_MAX: Duration = Duration::from_secs(60);

#[test]
fn books_from_a_backup_get_the_records_again_that_they_lack() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let alice = cluster.new_client("alice", "tokyo");
    let bob = cluster.new_client("bob", "osaka");
    let bucket = cluster.bucket(&alice, "public");
    let name = format!("{bucket}/song");
    alice.put_content(&name, &fresh_bytes(100_000)).expect(201);
    eventually("bob gets it", SOON, || {
        let answer = bob.get_content(&name);
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
    let folder = cluster.path("service-billing").display().to_string();
    let back_up = ["billing", "backup", "books.backup", "--fee", "service", "--data-dir", &folder];

    // The backup is taken while deliveries are booked.
    let (is_over, delivered) = (AtomicBool::new(false), AtomicU64::new(1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                bob.get_content(&name).expect(200);
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        });
        eventually("some are booked", SOON, || {
            let booked = cluster.billed(&bob)[0].deliveries.values().sum::<u64>();
            if booked > 5 { Ok(()) } else { Err(format!("{booked}")) }
        });
        let output = run(&cluster, &back_up, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen = delivered.load(Ordering::Relaxed);
        eventually("the system goes on", SOON, || {
            if delivered.load(Ordering::Relaxed) > seen + 20 { Ok(()) } else { Err("not yet".into()) }
        });
        is_over.store(true, Ordering::Relaxed);
    });
    let again = run(&cluster, &back_up, &[]);
    assert_eq!(again.status.code(), Some(1), "a backup replaces nothing");
    let delivered = delivered.load(Ordering::Relaxed);
    cluster.await_billed(&bob, &[("complete", delivered)]);

    cluster.terminate("service-billing");
    assert!(cluster.await_end("service-billing", SOON).success());
    let put_back = ["restore", "books.backup", "--fee", "service", "--data-dir", &folder];
    let (is_done, told) = billing(&cluster, &put_back);
    assert!(!is_done && told["stderr"].as_str().unwrap().contains("there already"), "{told:?}");
    for file in ["service.db", "service.db-wal", "service.db-shm"] {
        let _not_all_are_there = fs::remove_file(cluster.path("service-billing").join(file));
    }
    let (is_done, report) = billing(&cluster, &put_back);
    assert!(is_done && report["ok"] == true, "{report:?}");
    let restored = report["records"].as_u64().unwrap();
    assert!((5..delivered).contains(&restored), "{restored} of {delivered}");

    // No further delivery: the nodes notice by themselves.
    cluster.restart("service-billing");
    cluster.await_ready("service-billing");
    eventually("all is booked again, once", HEAL_TIME_MAX, || {
        let booked = cluster.billed(&bob)[0].deliveries.get("complete").copied();
        if booked == Some(delivered) { Ok(()) } else { Err(format!("{booked:?} of {delivered}")) }
    });
    let [service, content] = cluster.await_billed(&bob, &[("complete", delivered)]);
    assert_eq!(service.deliveries, content.deliveries);
    let (is_in_order, report): (bool, _) = billing(&cluster, &["verify"]);
    assert!(is_in_order, "{report:?}");
    eventually("logs and books agree", SOON, || {
        let (agrees, reports) = billing(&cluster, &["reconcile", &this_month()]);
        if agrees { Ok(()) } else { Err(format!("{reports:?}")) }
    });
    // What is new is booked behind what came back.
    bob.get_content(&name).expect(200);
    cluster.await_billed(&bob, &[("complete", delivered + 1)]);
}

#[test]
fn a_file_that_is_no_backup_is_not_put_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let dozo = |arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::process::dozo());
        command.args(arguments).current_dir(folder.path()).output().unwrap()
    };
    fs::write(folder.path().join("junk"), [7; 10_000]).unwrap();
    for command in [
        &["search", "restore", "junk", "--data-dir", "data"][..],
        &["billing", "restore", "junk", "--fee", "content", "--data-dir", "data"],
        &["search", "restore", "nothing", "--data-dir", "data"],
    ] {
        let output = dozo(command);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let left: Vec<_> = fs::read_dir(folder.path().join("data")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
