//! The support bundle: what is in it, and that no secret is.

use std::fs;

use crate::cards::{endpoints_file, run};
use crate::cluster::{Cluster, Mode, SECRET};

fn bundle_has_everything_but_secrets(cluster: &Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let passwords = ["hush-hush-in-the-address", "hush-hush-in-its-file", "hush-hush-in-the-keys"];
    fs::write(path("password"), passwords[1]).unwrap();
    fs::write(
        path("keys"),
        format!("[default]\naws_access_key_id = X\naws_secret_access_key = {}\n", passwords[2]),
    )
    .unwrap();
    let settings = format!(
        "database = \"postgres://books:{}@db/books\"\ndatabase_password_file = \"{}\"\nlease_ms = 4321\n\
         store = \"s3://bucket/x?credentials={}\"\n",
        passwords[0],
        path("password"),
        path("keys"),
    );
    fs::write(path("search.toml"), settings).unwrap();
    fs::write(path("broken.toml"), "= hush-hush").unwrap();
    // A log is as its program wrote it; what is known to be secret is taken out all the same.
    fs::write(path("dozo.log"), format!("first line\npassword {}\nsecret {SECRET}\n", passwords[1])).unwrap();
    let file = path("bundle.tar");
    let arguments = [
        "support-bundle",
        &file,
        "--config-dir",
        folder.path().to_str().unwrap(),
        "--log-file",
        &path("dozo.log"),
    ];
    let output = run(cluster, &arguments, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = run(cluster, &arguments, &[]);
    assert_eq!(again.status.code(), Some(1), "it replaces nothing");

    let bytes = fs::read(&file).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for name in [
        "system.txt",
        "environment.txt",
        "endpoints.json",
        "config/search.toml",
        "config/broken.toml",
        "logs/dozo.log",
        "servers/search/readyz.txt",
        "servers/search/metrics.txt",
        "servers/gateway-tokyo.g1/metrics.txt",
        "servers/gateway-osaka.g1/map.json",
        "servers/storage-node-tokyo.n1/node.json",
        "servers/service-billing/readyz.txt",
    ] {
        assert!(has(&format!("dozo-support/{name}\0")), "{name} is not in it");
    }
    for text in [
        "lease_ms = 4321",
        "postgres://books:…@db/books",
        "first line",
        "dozo_build_info",
        "[+] accepting ok",
    ] {
        assert!(has(text), "{text} is not in it");
    }
    let endpoints = &cluster.endpoints;
    let mut secrets = vec![endpoints.admin_token.as_str()];
    // `dozo up` made a secret of its own.
    let own = fs::read_to_string(cluster.path("cluster-secret")).unwrap();
    secrets.push(own.trim());
    let told = fs::read_to_string(endpoints_file(cluster)).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    for client in told["clients"].as_array().unwrap() {
        let keys = ["access_key", "secret_key", "token"].map(|key| client[key].as_str().unwrap());
        secrets.extend(keys.into_iter().filter(|key| !key.is_empty()));
    }
    secrets.extend(endpoints.clients.iter().map(|client| client.token.as_str()));
    assert!(secrets.len() > 3, "there are clients");
    for secret in secrets.into_iter().chain(passwords).chain(["= hush-hush", SECRET]) {
        assert!(!has(secret), "{secret} is in the bundle");
    }
}

#[test]
fn a_support_bundle_has_what_every_server_says_and_no_secret() {
    bundle_has_everything_but_secrets(Cluster::shared(Mode::ProcessPerServer));
}

#[test]
fn a_support_bundle_of_one_process_has_no_secret_either() {
    bundle_has_everything_but_secrets(Cluster::shared(Mode::OneProcess));
}
