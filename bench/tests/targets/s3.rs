//! The S3 target, through the program itself.

use std::process::Command;

use crate::server::{S3Server, python};

fn bench(server: &S3Server, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let target = format!("s3://AKIAEXAMPLE:secret/with+signs@{}/bench", server.address);
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--target", &target, "--connections", "4", "--warmup", "0s", "--json", "-"])
        .args(arguments)
        .output()
        .expect("bench runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), text)
}

#[test]
fn every_operation_of_an_s3_server_is_driven_and_checked() {
    let Some(python) = python() else { return };
    let server = S3Server::start(&python);
    let mix = "get=25,head=10,range=15,put=20,delete=5,list=10,multipart=15";
    // Contents of two parts are among them.
    let size = ["--size", "1KiB,200KiB,9MiB", "--objects", "6", "--range", "100KiB"];
    let arguments = [&["--mix", mix, "--duration", "6s"], &size[..]].concat();
    let (exit, report, text) = bench(&server, &arguments);
    assert_eq!(exit, Some(0), "{text}");
    assert_eq!(report["wrong_answers"], 0, "{text}");
    assert_eq!(report["left_behind"], 0, "{text}");
    assert!(report["errors"].as_array().is_some_and(Vec::is_empty), "{text}");
    assert!(report["read_back"]["read"].as_u64() > Some(0), "{text}");
    let rows = report["results"].as_array().expect("rows");
    for op in ["get", "head", "range", "put", "list", "multipart"] {
        assert!(rows.iter().any(|row| row["op"] == op && row["requests"].as_u64() > Some(0)), "{op}: {text}");
    }
    // Nothing of the first run is there for the second, which has other names anyhow.
    let (exit, report, text) = bench(&server, &["--op", "get", "--objects", "3", "--duration", "1s"]);
    assert_eq!((exit, &report["billing"]), (Some(0), &serde_json::Value::Null), "{text}");
}
