//! Originals: folders whose contents come, change and go while sites collect them.

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::api::origin::{OriginStatus, SourceState};
use serde_json::json;

use crate::cluster::{Cluster, Mode, SECRET, SOON, eventually};
use crate::process::dozo;
use crate::{etag_of, fresh_bytes};

/// Scanning a hundred thousand files takes long in a debug build on a busy machine.
const SCAN_TIME_MAX: Duration = Duration::from_secs(240);

fn origin(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(dozo())
        .arg("origin")
        .args(arguments)
        .env("DOZO_ENDPOINTS", cluster.path("endpoints.json"))
        .output()
        .expect("dozo runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("it was not killed"), String::from_utf8(text).expect("text"))
}

fn origin_done(cluster: &Cluster, arguments: &[&str]) -> String {
    let (exit, text) = origin(cluster, arguments);
    assert_eq!(exit, 0, "{arguments:?}: {text}");
    text
}

#[test]
fn a_folder_is_added_followed_and_removed_by_the_command_line() {
    let cluster = Cluster::shared(Mode::OneProcess);
    let (alice, carol) = (cluster.new_client("alice", "tokyo"), cluster.new_client("carol", "osaka"));
    let folder = cluster.path("reels");
    fs::create_dir_all(folder.join("old & odd")).unwrap();
    let first = fresh_bytes(3 << 20);
    fs::write(folder.join("old & odd/reel #1 50%.bin"), &first).unwrap();
    let url = format!("dir:{}", folder.display());
    origin_done(cluster, &["add", &url, "--bucket", "reels", "--provider", "studio", "--reads", "4"]);
    let path = "/v1/contents/reels/old%20%26%20odd/reel%20%231%2050%25.bin";
    let got = eventually("the original is delivered", SOON, || {
        let answer = alice.get(path);
        if answer.status == 200 { Ok(answer) } else { Err(answer.text()) }
    });
    assert!(got.body == first);
    assert_eq!(got.header("dozo-source"), Some("origin"));
    assert_eq!(carol.get(path).expect(200).body, first);
    let listed = origin_done(cluster, &["list", "--json"]);
    assert!(listed.contains(&url) && listed.contains(r#""read_concurrency": 4"#), "{listed}");

    // A change reaches the site that holds the old version.
    let second = fresh_bytes(2 << 20);
    fs::write(folder.join("old & odd/reel #1 50%.bin"), &second).unwrap();
    for client in [&alice, &carol] {
        eventually("the new version is delivered", SOON, || {
            let answer = client.get(path);
            let is_new = answer.status == 200 && answer.header("etag") == Some(&etag_of(&second));
            // Meanwhile it is the old one, whole, or a refusal that says what is going on.
            assert!(is_new || answer.status != 200 || answer.body == first, "neither version");
            if is_new { Ok(()) } else { Err(answer.status.to_string()) }
        });
    }
    let status = origin_done(cluster, &["status"]);
    assert!(status.contains("reels") && status.contains("watched"), "{status}");

    fs::remove_file(folder.join("old & odd/reel #1 50%.bin")).unwrap();
    fs::write(folder.join("other.bin"), "x").unwrap();
    eventually("the origin has withdrawn it", SOON, || {
        match cluster.lookup("reels/old & odd/reel #1 50%.bin") {
            Ok(info) if !info.origins.is_empty() => Err(format!("{:?}", info.origins)),
            _ => Ok(()),
        }
    });
    // A site that holds it keeps it.
    assert!(alice.get(path).expect(200).body == second);

    let (exit, text) = origin(cluster, &["add", "dir:/", "--bucket", "reels", "--provider", "studio"]);
    assert_eq!(exit, 1, "{text}");
    assert!(text.contains(&url), "{text}");
    origin_done(cluster, &["rescan", "reels"]);
    origin_done(cluster, &["remove", "reels"]);
    eventually("the source is gone", SOON, || {
        let listed = origin_done(cluster, &["list", "--json"]);
        if listed.contains("reels") { Err(listed) } else { Ok(()) }
    });
    assert_eq!(alice.get("/v1/contents/reels/other.bin").status, 404);
}

#[test]
fn an_original_that_changes_while_it_is_collected_is_never_delivered_mixed() {
    let cluster = Cluster::shared(Mode::OneProcess);
    let alice = cluster.new_client("alice", "tokyo");
    let folder = cluster.path("changing");
    fs::create_dir_all(&folder).unwrap();
    let (first, second) = (fresh_bytes(48 << 20), fresh_bytes(24 << 20));
    fs::write(folder.join("film.bin"), &first).unwrap();
    let url = format!("dir:{}", folder.display());
    origin_done(cluster, &["add", &url, "--bucket", "changing", "--provider", "studio"]);
    eventually("the original is known", SOON, || cluster.lookup("changing/film.bin").map(drop));
    let path = "/v1/contents/changing/film.bin";
    let mut reading = alice.open("GET", path, &[]).expect("it is reached");
    assert_eq!(reading.status, 200);
    let begun = reading.read_exact(1 << 20).expect("a first part");
    fs::write(folder.join("film.bin"), &second).unwrap();
    assert!(begun == first[..1 << 20]);
    // What follows is of the same version; if it is not there any more, the answer breaks off.
    if let Ok(rest) = reading.finish() {
        assert!(rest.body == first[1 << 20..], "a mixture was delivered as a whole");
    }
    let got = eventually("the new version is delivered", SOON, || {
        let answer = alice.get(path);
        match answer.header("etag") {
            Some(etag) if answer.status == 200 && etag == etag_of(&second) => Ok(answer),
            _ => Err(answer.status.to_string()),
        }
    });
    assert!(got.body == second);
    origin_done(cluster, &["remove", "changing"]);
}

#[test]
fn a_hundred_thousand_originals_are_registered_in_bounded_memory_also_when_it_is_killed_half_way() {
    const COUNT: u64 = 100_000;
    let cluster = Cluster::shared(Mode::OneProcess);
    let folder = cluster.path("many");
    for i in 0..COUNT {
        let part = folder.join((i / 1000).to_string());
        if i % 1000 == 0 {
            fs::create_dir_all(&part).unwrap();
        }
        fs::write(part.join(format!("{i}.txt")), i.to_string()).unwrap();
    }
    // A search of its own: others should not feel this.
    let port = cluster.port_base + 90;
    let at = |offset: u16| format!("127.0.0.1:{}", port + offset);
    let [search_dir, archive_dir] = ["many-search", "archive"].map(|n| cluster.path(n).display().to_string());
    let secret_file = cluster.path("archive-secret").display().to_string();
    fs::write(&secret_file, SECRET).unwrap();
    let source = format!("many,studio,dir:{}", folder.display());
    let common = ["--cluster-secret-file", &secret_file, "--log", "warn"];
    let (search_listen, search_admin, listen, admin) = (at(0), at(1), at(2), at(3));
    let search_url = format!("http://{search_listen}");
    let search = ["search", "--listen", &search_listen, "--admin", &search_admin, "--data-dir", &search_dir];
    cluster.spawn_server("many-search", &[&search[..], &common].concat());
    let archive = [
        "origin",
        "--name",
        "archive",
        "--listen",
        &listen,
        "--admin",
        &admin,
        "--search",
        &search_url,
        "--data-dir",
        &archive_dir,
        "--source",
        &source,
    ];
    cluster.spawn_server("archive", &[&archive[..], &common].concat());
    let search = cluster.operator(&search_url);
    eventually("search answers", SOON, || {
        let gateway = json!({"role": "gateway", "name": "g1", "site": "tokyo", "zone": null,
            "http": "http://127.0.0.1:1", "s3": null, "admin": "http://127.0.0.1:1", "node": null});
        let body = gateway.to_string();
        let headers = [("content-type", "application/json")];
        let answer = search.try_send("POST", "/v1/servers", &headers, body.as_bytes());
        answer.map_err(|error| error.to_string()).map(|answer| answer.expect(200))
    });
    search.send_json("POST", "/v1/clients", &json!({"client": "studio", "site": "tokyo"})).expect(200);
    let began = std::time::Instant::now();
    let operator = cluster.operator(&format!("http://{listen}"));
    let status = || {
        let answer = operator.try_send("GET", "/v1/status", &[], &[]).map_err(|e| e.to_string())?;
        let status: OriginStatus = answer.json();
        Ok::<_, String>(status.sources.into_iter().next().ok_or("no source")?)
    };
    let half = eventually("half is registered", SCAN_TIME_MAX, || {
        let status = status()?;
        if status.contents >= COUNT / 3 { Ok(status.contents) } else { Err(format!("{status:?}")) }
    });
    assert!(half < COUNT, "too fast to be killed half way");
    cluster.kill("archive");
    cluster.restart("archive");
    let all = eventually("all are registered", SCAN_TIME_MAX, || {
        let status = status()?;
        let is_done = status.contents == COUNT && status.state == SourceState::Scanned;
        if is_done { Ok(status) } else { Err(format!("{status:?}")) }
    });
    assert_eq!((all.scan.listed, all.scan.unreadable, all.held), (COUNT, 0, None), "{all:?}");
    assert!(all.scan.read <= COUNT - half, "{half} were registered before, yet {} were read", all.scan.read);
    let registered = began.elapsed();
    let peak_kib = cluster.peak_memory_kib("archive");
    println!("{registered:?}, {} read after the restart, peak {peak_kib} KiB", all.scan.read);
    assert!(peak_kib < 150 << 10, "{peak_kib} KiB");
    eventually("search is being told", SOON, || {
        let listed = search.get("/v1/contents/list?bucket=many&prefix=&after=&limit=1").expect(200).text();
        if listed.contains("many/") { Ok(()) } else { Err(listed) }
    });
    cluster.kill("archive");
    cluster.kill("many-search");
}
