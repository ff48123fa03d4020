//! `dozo billing` as somebody uses it who has a file of delivery records: what a replay prints, how faults are told,
//! and a month on two servers from its close to the bank and back. Every amount was computed by hand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::auth::ClusterSecret;
use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn admin_token() -> String {
    ClusterSecret::new(SECRET).expect("it is long enough").admin_token().to_owned()
}

fn dozo(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dozo"));
    command.current_dir(folder).args(arguments).env_remove("DOZO_ENDPOINTS").env_remove("RUST_LOG");
    command.output().expect("cargo builds the binary for this test")
}

#[track_caller]
fn succeeds(output: &Output) -> &[u8] {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    &output.stdout
}

/// What went wrong, as it is told; nothing is printed beside it.
#[track_caller]
fn fault(output: &Output) -> String {
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A line of a file of records: bob of tokyo, alice's song, what tokyo held, unless `change` says otherwise.
fn line(seq: u64, begin: &str, change: Value) -> String {
    let mut line = json!({
        "node": "tokyo.n1", "epoch": 1, "seq": seq, "begin": begin, "end": begin, "client": "bob",
        "content": "alice/song", "hash": "ab".repeat(32), "provider": "alice", "class": "purchase", "path": "hit",
        "home": "tokyo", "source": null, "searched": false, "surrogate": null, "mobile_access": null,
        "delivery": format!("{seq:032x}"), "status": "complete", "bytes_total": 2_000_000, "bytes_sent": 2_000_000,
    });
    let Value::Object(change) = change else { panic!("{change} is no object") };
    line.as_object_mut().expect("it is an object").extend(change);
    line.to_string()
}

/// Balances in millionths, those that are not zero.
fn balances(accounts: &Value) -> BTreeMap<String, i64> {
    let named = |line: &Value| {
        let micros = line["balance_micros"].as_i64().expect("a number");
        (micros != 0).then(|| (line["account"].as_str().expect("a name").to_owned(), micros))
    };
    accounts.as_array().expect("a list").iter().filter_map(named).collect()
}

fn expected(lines: &[(&str, i64)]) -> BTreeMap<String, i64> {
    lines.iter().map(|(account, micros)| ((*account).to_owned(), *micros)).collect()
}

/// All that terms can say. The second tariff begins at midnight in UTC, which is nine o'clock in Tokyo.
const TERMS: &str = r#"
[[service.tariffs]]
valid_from = "2025-01-01"
zone = "Asia/Tokyo"
currency = "JPY"
per_delivery = "1"
per_megabyte = "0.5"
surrogate_surcharge = "2"
tax_basis_points = 1000
payout = { minimum = "3" }
[[service.tariffs]]
valid_from = "2025-10-16"
zone = "UTC"
currency = "JPY"
per_delivery = "2"
per_megabyte = "0.25"
surrogate_surcharge = "2"
payout = { minimum = "3" }
[[service.splits]]
valid_from = "2025-01-01"
hit = { home = 8000, billing = 2000 }
peer = { home = 5000, source = 3000, search = 1000, billing = 1000 }
origin = { home = 5000, origin = 3000, search = 1000, billing = 1000 }
surcharge = { surrogate = 6000, mobile_access = 3000, billing = 1000 }
[[service.splits]]
valid_from = "2025-10-16T09:00:00"
hit = { home = 9000, billing = 1000 }
peer = { home = 5000, source = 3000, search = 1000, billing = 1000 }
origin = { home = 5000, origin = 3000, search = 1000, billing = 1000 }
surcharge = { surrogate = 6000, mobile_access = 3000, billing = 1000 }
[[content.tariffs]]
valid_from = "2025-01-01"
currency = "JPY"
purchase = "10"
reference = "1"
payout = { minimum = "1", basis = "collected" }
[[content.tariffs.prices]]
content = "alice/film"
purchase = "300"
reference = "0"
[[content.splits]]
valid_from = "2025-01-01"
hit = { home = 1000, billing = 500 }
peer = { home = 800, source = 400, search = 200, billing = 500 }
origin = { home = 800, origin = 400, search = 200, billing = 500 }
surrogate = 300
"#;

#[test]
fn a_file_is_booked_under_dated_terms_as_it_is_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let records = [
        line(1, "2025-10-10T12:00:00+09:00", json!({})),
        line(
            2,
            "2025-10-16T08:59:59.999+09:00",
            json!({"class": "reference", "path": "peer", "source": "osaka", "searched": true}),
        ),
        line(3, "2025-10-16T00:00:00Z", json!({"content": "alice/film"})),
        line(
            4,
            "2025-10-20T00:00:00Z",
            json!({"client": "carol", "home": "osaka", "class": "reference", "surrogate": "tokyo", "mobile_access": "m1"}),
        ),
        line(
            5,
            "2025-10-20T00:00:00Z",
            json!({"content": "studio/x", "provider": "studio", "path": "origin", "source": "studio", "searched": true}),
        ),
        line(6, "2025-10-20T00:00:00Z", json!({"status": "void", "bytes_sent": 0})),
        line(7, "2025-10-20T00:00:00Z", json!({"status": "recovered"})),
    ];
    std::fs::write(folder.path().join("terms.toml"), TERMS).unwrap();
    std::fs::write(folder.path().join("records.jsonl"), records.join("\n")).unwrap();
    let replay = [
        "billing",
        "replay",
        "records.jsonl",
        "--config",
        "terms.toml",
        "--close",
        "2025-10",
        "--data-dir",
        "books",
    ];
    let output = dozo(folder.path(), &replay);
    let reports: Value = serde_json::from_slice(succeeds(&output)).unwrap();
    let invoices = |fee: &str| -> Vec<_> {
        let all = reports[fee]["closed"][0]["invoices"].as_array().unwrap().iter();
        all.map(|i| {
            let number = |field: &str| i[field].as_i64().unwrap();
            (i["client"].as_str().unwrap(), number("net_minor"), number("tax_minor"), number("total_minor"))
        })
        .collect()
    };
    // Two megabytes cost 1 + 1 yen at first and 2 + 0.5 later; carol's, who was away, 2 more.
    assert_eq!(invoices("service"), [("bob", 9, 0, 9), ("carol", 5, 0, 5)]);
    assert_eq!(invoices("content"), [("bob", 321, 32, 353), ("carol", 1, 0, 1)]);
    // Of tokyo's 1.6 + 1 + 2.25 + 1.2 + 1.25 yen whole yen are paid; others stay below 3.
    let service = [
        ("bank", -7_000_000),
        ("payable:billing:service", -1_550_000),
        ("payable:mobile:m1", -600_000),
        ("payable:origin:studio", -750_000),
        ("payable:search", -450_000),
        ("payable:site:osaka", -2_850_000),
        ("payable:site:tokyo", -300_000),
        ("receivable:bob", 9_000_000),
        ("receivable:carol", 5_000_000),
        ("rounding", -500_000),
    ];
    assert_eq!(balances(&reports["service"]["accounts"]), expected(&service));
    // Nothing has come in yet, so nothing is paid out.
    let content = [
        ("payable:billing:content", -16_100_000),
        ("payable:origin:studio", -400_000),
        ("payable:provider:alice", -265_130_000),
        ("payable:provider:studio", -8_100_000),
        ("payable:search", -220_000),
        ("payable:site:osaka", -140_000),
        ("payable:site:tokyo", -31_910_000),
        ("receivable:bob", 353_000_000),
        ("receivable:carol", 1_000_000),
        ("tax", -32_000_000),
    ];
    assert_eq!(balances(&reports["content"]["accounts"]), expected(&content));
    for fee in ["service", "content"] {
        let report = &reports[fee];
        assert_eq!((report["verify"]["ok"].as_bool(), report["exceptions"].as_u64()), (Some(true), Some(0)));
        assert_eq!(report["totals"]["records"], json!({"complete": 5, "void": 1, "recovered": 1}));
    }
    let again = fault(&dozo(folder.path(), &replay));
    assert!(again.contains("the service ledger is not empty; replay into a new folder"), "{again}");
}

#[test]
fn a_fault_in_a_file_of_records_is_told_with_line_field_and_bound() {
    let folder = tempfile::tempdir().unwrap();
    let at = "2025-10-10T12:00:00+09:00";
    let good = |seq| line(seq, at, json!({}));
    let faulty = |change: Value| vec![good(1), line(2, at, change)];
    let mut without_client: Value = serde_json::from_str(&good(2)).unwrap();
    without_client.as_object_mut().unwrap().remove("client");
    let cases = [
        (vec![good(1), without_client.to_string()], "line 2: missing field `client`"),
        (vec![good(1), "{\"node\": ".into()], "line 2: node: EOF"),
        (vec![good(1), "no record".into()], "line 2: "),
        (vec![good(1) + &good(2)], "line 1: there is more than one JSON object; write one record a line"),
        (faulty(json!({"price": 1})), "line 2: price: unknown field `price`"),
        (faulty(json!({"bytes_sent": -1})), "line 2: bytes_sent: invalid value: integer `-1`, expected u64"),
        (
            faulty(json!({"bytes_total": u64::MAX})),
            "line 2: bytes_total: 18446744073709551615 is not within 0 to 2^63 - 1",
        ),
        (faulty(json!({"seq": 0})), "line 2: seq: 0 is not within 1 to 2^63 - 1"),
        (
            faulty(json!({"class": "gift"})),
            "line 2: class: unknown variant `gift`, expected `purchase` or `reference`",
        ),
        (
            faulty(json!({"begin": "yesterday"})),
            "line 2: begin: \"yesterday\" is not a time as 2026-10-15T00:00:00.000Z",
        ),
        (faulty(json!({"begin": -5})), "line 2: begin: milliseconds since 1970, or a text as"),
        (
            faulty(json!({"end": "2025-10-10T11:59:59+09:00"})),
            "line 2: end: 2025-10-10T02:59:59.000Z is before the begin, 2025-10-10T03:00:00.000Z",
        ),
        (faulty(json!({"client": "Bob & Co"})), "line 2: client: client \"Bob & Co\" is not valid: "),
        (
            faulty(json!({"path": "peer", "source": "No Site"})),
            "line 2: source: site \"No Site\" is not valid: ",
        ),
        (
            faulty(json!({"seq": 1})),
            "line 2: record 1 of tokyo.n1 in epoch 1 is also line 1, with other facts",
        ),
        (
            faulty(json!({"seq": 4})),
            "line 2: tokyo.n1 has record 4 in epoch 1, but the file lacks record 2 before it",
        ),
    ];
    for (lines, told) in cases {
        std::fs::write(folder.path().join("records.jsonl"), lines.join("\n")).unwrap();
        let error = fault(&dozo(folder.path(), &["billing", "replay", "records.jsonl"]));
        assert!(error.contains(&format!("records.jsonl: {told}")), "{told:?} is not in {error}");
    }
    let twice = [good(1), good(2), good(1)].join("\n");
    std::fs::write(folder.path().join("records.jsonl"), twice).unwrap();
    let output = dozo(folder.path(), &["billing", "replay", "records.jsonl"]);
    let reports: Value = serde_json::from_slice(succeeds(&output)).unwrap();
    assert_eq!(reports["service"]["totals"]["records"], json!({"complete": 2}));
    assert!(fault(&dozo(folder.path(), &["billing", "replay", "none.jsonl"])).contains("reading none.jsonl"));
}

#[test]
fn terms_that_contradict_themselves_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("records.jsonl"), line(1, "2025-10-10T12:00:00+09:00", json!({})))
        .unwrap();
    let changed = |from: &str, to: &str| {
        assert!(TERMS.contains(from), "{from}");
        TERMS.replacen(from, to, 1)
    };
    let cases = [
        (
            changed("\"JPY\"", "\"BTC\""),
            "service.tariffs number 1 of the terms: currency \"BTC\" is not known: use JPY, EUR",
        ),
        (
            changed("valid_from = \"2025-10-16\"", "valid_from = \"2024-12-31T15:00:00\""),
            "service.tariffs number 2 of the terms: version 1 holds from 2024-12-31T15:00:00",
        ),
        (
            changed("valid_from = \"2025-10-16T09:00:00\"", "valid_from = \"2024-01-01\""),
            "service.splits number 2 of the terms: version 1 holds from 2024-12-31T15:00:00",
        ),
        (
            changed("\"0.5\"", "\"-0.5\""),
            "service.tariffs number 1 of the terms: per_megabyte \"-0.5\" is not a price",
        ),
        (changed("\"0.5\"", "\"0.0000005\""), "at most 6 after a point, at most 1000000000"),
        (
            changed("billing = 2000", "billing = 2001"),
            "service.splits number 1 of the terms: the ratios of hit sum to 10001",
        ),
        (
            changed("surrogate = 300", "surrogate = 8500"),
            "content.splits number 1 of the terms: the commissions of hit",
        ),
        (
            changed("\"UTC\"", "\"Mars\""),
            "service.tariffs number 2 of the terms: zone \"Mars\" is not valid: UTC, Asia/Tokyo",
        ),
        (
            changed("2025-10-16T09", "2025-10-36T09"),
            "service.splits number 2 of the terms: time \"2025-10-36T09:00:00\"",
        ),
        (
            changed("tax_basis_points = 1000", "tax_basis_points = 10001"),
            "tax_basis_points 10001 is more than 10000",
        ),
        (changed("\"collected\"", "\"sometimes\""), "terms.toml: TOML parse error at line "),
        (changed("per_delivery = \"1\"\n", ""), "missing field `per_delivery`"),
    ];
    for (terms, told) in cases {
        std::fs::write(folder.path().join("terms.toml"), terms).unwrap();
        let output = dozo(folder.path(), &["billing", "replay", "records.jsonl", "--config", "terms.toml"]);
        let error = fault(&output);
        assert!(error.contains(told), "{told:?} is not in {error}");
    }
}

/// A billing server on a ledger that a replay left.
struct Server {
    process: Child,
    http: String,
    /// Read to its end, or the server could not write its log.
    _stderr: std::thread::JoinHandle<()>,
}

impl Server {
    fn start(folder: &Path, role: &str, terms: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dozo"));
        command.current_dir(folder).env("DOZO__CLUSTER__SECRET", SECRET).env_remove("RUST_LOG");
        command.args(["--log-format", "json", role, "--name", role, "--search", "http://127.0.0.1:1"]);
        command.args(["--listen", "127.0.0.1:0", "--data-dir", "books", "--tariff-file", terms]);
        let mut process =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut stderr = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut line = String::new();
        let http = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("logs are text") > 0, "it ended before it listened");
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "started" {
                break event["http"].as_str().expect("it says where").to_owned();
            }
        };
        let rest = std::thread::spawn(move || {
            let _ended = std::io::copy(&mut stderr, &mut std::io::sink());
        });
        Self { process, http, _stderr: rest }
    }

    /// The operator's question, with its answer's body.
    fn get(&self, path: &str) -> Value {
        use std::io::{Read, Write};
        let address = self.http.strip_prefix("http://").expect("http://host:port");
        let token = admin_token();
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        serde_json::from_str(body).expect("JSON")
    }

    fn balances(&self) -> BTreeMap<String, i64> {
        balances(&self.get("/v1/accounts?limit=1000"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _waited_already = self.process.wait();
    }
}

/// A month in yen and, for the content, in euro; the two months after it the content costs credit of the system.
const MONTHS: &str = r#"
[[service.tariffs]]
valid_from = "2025-01-01"
currency = "JPY"
per_delivery = "100"
per_megabyte = "5"
[[service.splits]]
valid_from = "2025-01-01"
hit = { home = 8000, billing = 2000 }
peer = { home = 10000 }
origin = { home = 10000 }
surcharge = { surrogate = 10000 }
[[content.tariffs]]
valid_from = "2025-01-01"
currency = "EUR"
purchase = "0.50"
reference = "0.05"
[[content.tariffs]]
valid_from = "2025-11-01"
currency = "XDZ"
purchase = "40"
reference = "10"
[[content.splits]]
valid_from = "2025-01-01"
hit = { home = 1000, billing = 500 }
peer = {}
origin = {}
"#;

/// Who the parties are to the service server: with accounts in Japan. Carol has none.
const IN_JAPAN: &str = r#"
[[parties]]
party = "billing:service"
valid_from = "2025-01-01"
name = "Dozo Delivery"
address = "1-1 Marunouchi, Tokyo"
country = "JP"
registration_number = "T1234567890123"
email = "bills@dozo.example"
bank = { scheme = "zengin", bank_code = "0001", bank_name = "ミズホ", branch_code = "005", branch_name = "マルノウチ", kind = "current", number = "7654321", holder = "カ)ドーゾ", consignor_code = "1234567890" }
[[parties]]
party = "client:bob"
valid_from = "2025-01-01"
name = "Bob <& Sons>"
address = "2-2 Chiyoda, Tokyo"
country = "JP"
email = "bob@bob.example"
bank = { scheme = "zengin", bank_code = "0310", bank_name = "アオゾラ", branch_code = "101", branch_name = "ホウジン", kind = "ordinary", number = "0000012", holder = "ボブ" }
[[parties]]
party = "site:tokyo"
valid_from = "2025-01-01"
name = "Site Tokyo"
bank = { scheme = "zengin", bank_code = "0009", bank_name = "ミツイスミトモ", branch_code = "001", branch_name = "ホンテン", kind = "ordinary", number = "0000345", holder = "サイトトウキヨウ" }
"#;

/// And to the content server: with accounts in the euro area, and alice with credit in the system.
const IN_EUROPE: &str = r#"
[[parties]]
party = "billing:content"
valid_from = "2025-01-01"
name = "Dozo Contenu SARL"
address = "1 rue de Rivoli, Paris"
country = "FR"
registration_number = "FR32123456789"
email = "bills@dozo.example"
bank = { scheme = "sepa", iban = "FR1420041010050500013M02606", holder = "Dozo Contenu SARL", creditor_id = "DE98ZZZ09999999999" }
[[parties]]
party = "client:bob"
valid_from = "2025-01-01"
name = "Bob <& Sons>"
address = "2 Lindenallee, Berlin"
country = "DE"
email = "bob@bob.example"
bank = { scheme = "sepa", iban = "DE89370400440532013000", holder = "Bob & Sons", mandate = { id = "DOZO-BOB-1", signed = "2025-01-31" } }
[[parties]]
party = "site:tokyo"
valid_from = "2025-01-01"
name = "Site Tokyo"
bank = { scheme = "sepa", iban = "GB82WEST12345698765432", holder = "Site Tokyo" }
[[parties]]
party = "provider:alice"
valid_from = "2025-01-01"
name = "Alice Records"
payout = "wallet"
"#;

/// Two billing servers on the ledgers that a file of three months was booked into.
struct Office {
    folder: tempfile::TempDir,
    service: Server,
    content: Server,
}

impl Office {
    fn open() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let four = |change: Value| {
            let mut change = change;
            change["bytes_total"] = json!(4_000_000);
            change["bytes_sent"] = json!(4_000_000);
            change
        };
        let alices = json!({"client": "alice", "content": "studio/film", "provider": "studio"});
        let records = [
            line(1, "2025-10-01T00:00:00+09:00", four(json!({}))),
            line(2, "2025-10-31T23:59:59.999+09:00", four(json!({"class": "reference"}))),
            line(3, "2025-10-15T12:00:00+09:00", four(json!({"client": "carol"}))),
            line(4, "2025-11-01T00:00:00+09:00", four(json!({"content": "alice/second"}))),
            line(5, "2025-12-24T18:00:00+09:00", four(alices)),
        ];
        for (name, text) in [
            ("records.jsonl", records.join("\n")),
            ("terms.toml", MONTHS.to_owned()),
            ("japan.toml", IN_JAPAN.to_owned()),
            ("europe.toml", IN_EUROPE.to_owned()),
        ] {
            std::fs::write(folder.path().join(name), text).expect("the folder is ours");
        }
        let replay = ["billing", "replay", "records.jsonl", "--config", "terms.toml", "--data-dir", "books"];
        succeeds(&dozo(folder.path(), &replay));
        let service = Server::start(folder.path(), "service-billing", "japan.toml");
        let content = Server::start(folder.path(), "content-billing", "europe.toml");
        let nowhere =
            json!({"http": "http://127.0.0.1:1", "admin": "http://127.0.0.1:1", "hear": "127.0.0.1:1"});
        let at = |server: &Server| json!({"http": server.http, "admin": server.http});
        let token = admin_token();
        let endpoints = json!({"search": nowhere, "origin": nowhere, "mobile_access": nowhere, "sites": [], "clients": [],
            "service_billing": at(&service), "content_billing": at(&content), "admin_token": token});
        std::fs::write(folder.path().join("endpoints.json"), endpoints.to_string())
            .expect("the folder is ours");
        Self { folder, service, content }
    }

    /// `dozo billing …`, asked as the operator.
    fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dozo"));
        command.current_dir(self.folder.path()).arg("billing").args(arguments).env_remove("RUST_LOG");
        command.env("DOZO_ENDPOINTS", "endpoints.json").env("DOZO__CLUSTER__SECRET", SECRET);
        command.output().expect("cargo builds the binary for this test")
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(succeeds(&self.ask(arguments))).expect("JSON")
    }

    #[track_caller]
    fn bytes(&self, arguments: &[&str]) -> Vec<u8> {
        succeeds(&self.ask(arguments)).to_vec()
    }

    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.bytes(arguments)).expect("text")
    }

    #[track_caller]
    fn assert_verifies(&self) {
        let reports = self.json(&["verify"]);
        assert_eq!([&reports["service"]["ok"], &reports["content"]["ok"]], [true, true], "{reports}");
    }
}

/// Number, client, net, tax and total of each invoice.
fn shown(invoices: &Value) -> Vec<(&str, &str, i64, i64, i64)> {
    let all = invoices.as_array().expect("a list").iter().map(|invoice| {
        let text = |field: &str| invoice[field].as_str().expect("a text");
        let number = |field: &str| invoice[field].as_i64().expect("a number");
        (text("number"), text("client"), number("net_minor"), number("tax_minor"), number("total_minor"))
    });
    all.collect()
}

/// The records of a bank file of lines.
fn zengin_records(file: &[u8]) -> Vec<&[u8]> {
    file.chunks(122).map(|record| record.strip_suffix(b"\r\n").expect("each is a line")).collect()
}

#[test]
fn a_month_goes_from_its_close_to_the_bank_and_back() {
    let office = Office::open();
    let draft = office.json(&["close", "2025-10", "--dry-run"]);
    assert_eq!(draft["service"]["closed"], false);
    let closed = office.json(&["close", "2025-10"]);
    // A delivery of four megabytes costs 100 + 4 x 5 yen.
    let yen = [("S-0000001", "bob", 240, 24, 264), ("S-0000002", "carol", 120, 12, 132)];
    assert_eq!(shown(&closed["service"]["invoices"]), yen);
    // 50 + 5 cents for bob, 50 for carol; the tax is rounded down.
    let cents = [("C-0000001", "bob", 55, 5, 60), ("C-0000002", "carol", 50, 5, 55)];
    assert_eq!(shown(&closed["content"]["invoices"]), cents);
    assert_eq!(office.json(&["close", "2025-10"]), closed, "it is closed once");
    let bobs = office.json(&["invoice", "bob", "--period", "2025-10"]);
    assert_eq!((shown(&bobs["service"]), shown(&bobs["content"])), (vec![yen[0]], vec![cents[0]]));

    // The forms of an invoice.
    let csv = office.text(&["document", "S-0000001.csv"]);
    for row in [
        "line,2025-10,false,usage,purchase,hit,1,4000000,120\r\n",
        "line,2025-10,false,usage,reference,hit,1,4000000,120\r\n",
        "tax,,,1000,,,,,24\r\n",
        "total,,,,,,,,264\r\n",
    ] {
        assert!(csv.contains(row), "{row} is not in {csv}");
    }
    assert!(office.text(&["document", "C-0000001.csv"]).contains("total,,,,,,,,0.60\r\n"));
    let html = office.text(&["document", "S-0000001.html"]);
    assert!(
        html.contains("Bob &lt;&amp; Sons&gt;") && html.contains("T1234567890123") && html.contains("264")
    );
    let ubl = office.text(&["document", "C-0000001.xml"]);
    assert!(ubl.contains("<cbc:PayableAmount currencyID=\"EUR\">0.60</cbc:PayableAmount>"), "{ubl}");
    assert!(ubl.contains("<cbc:TaxAmount currencyID=\"EUR\">0.05</cbc:TaxAmount>"), "{ubl}");

    // Service: of 360 yen 288 are tokyo's. Content: of 105 cents 89.25 are alice's, 10.5 tokyo's, 5.25 the server's.
    let statement = |party: &str, fee: &str| {
        let all = office.json(&["statement", party, "--period", "2025-10", "--fee", fee]);
        let one = &all[fee][0];
        let number = |field: &str| one[field].as_i64().expect("a number");
        let method = one["payout_method"].as_str().expect("it is paid").to_owned();
        (number("earned_micros"), number("payout_minor"), number("carried_micros"), method)
    };
    assert_eq!(statement("site:tokyo", "service"), (288_000_000, 288, 0, "bank".into()));
    assert_eq!(statement("billing:service", "service"), (72_000_000, 72, 0, "bank".into()));
    assert_eq!(statement("provider:alice", "content"), (89_250_000, 89, 250_000, "wallet".into()));
    assert_eq!(statement("site:tokyo", "content"), (10_500_000, 10, 500_000, "bank".into()));
    assert_eq!(statement("billing:content", "content"), (5_250_000, 5, 250_000, "bank".into()));
    let form = ["statement", "site:tokyo", "--period", "2025-10", "--fee", "content", "--form", "csv"];
    assert!(office.text(&form).contains("payout,,,bank,,,,,0.10\r\n"));

    // Money out: 72 + 288 yen by a file of kind 21.
    let file = |what: &str, fee: &str, scheme: &str| {
        office.bytes(&["export", what, "2025-10", "--scheme", scheme, "--date", "2025-11-28", "--fee", fee])
    };
    let transfers = file("payouts", "service", "zengin");
    let records = zengin_records(&transfers);
    assert_eq!((records.len(), &records[0][..4], &records[0][54..58]), (5, &b"1210"[..], &b"1128"[..]));
    assert_eq!((&records[1][80..90], &records[1][91..101]), (&b"0000000072"[..], &b"SP-0000001"[..]));
    assert_eq!((&records[2][80..90], &records[2][91..101]), (&b"0000000288"[..], &b"SP-0000002"[..]));
    assert_eq!(&records[3][..19], b"8000002000000000360");

    // Money in: what bob owes by a file of kind 91; carol pays by herself. The bank did as it was asked.
    let mut debits = file("debits", "service", "zengin");
    let records = zengin_records(&debits);
    assert_eq!((records.len(), &records[0][..4]), (4, &b"1910"[..]));
    assert_eq!((&records[1][80..90], &records[1][91..100]), (&b"0000000264"[..], &b"S-0000001"[..]));
    assert_eq!(&records[2][..19], b"8000001000000000264");
    debits[2 * 122 + 19..][..36].copy_from_slice(b"000001000000000264000000000000000000");
    std::fs::write(office.folder.path().join("results"), &debits).unwrap();
    let paid = json!({"paid": ["S-0000001"], "unpaid": [], "refused": []});
    for _ in 0..2 {
        assert_eq!(office.json(&["import", "results", "--fee", "service"]), paid, "again it changes nothing");
    }
    let service = [
        ("bank", 264_000_000 - 360_000_000),
        ("receivable:carol", 132_000_000),
        ("tax", -36_000_000),
        ("payable:billing:service", -48_000_000),
        ("payable:site:tokyo", -192_000_000),
        ("unbilled:alice", 120_000_000),
        ("unbilled:bob", 120_000_000),
    ];
    assert_eq!(office.service.balances(), expected(&service));
    office.json(&["pay", "S-0000002", "132", "carol's transfer"]);
    let nothing =
        ["export", "debits", "2025-10", "--scheme", "zengin", "--date", "2025-11-28", "--fee", "service"];
    assert_eq!(office.ask(&nothing).status.code(), Some(1), "nothing is owed any more");

    // The same in euro.
    let transfers = String::from_utf8(file("payouts", "content", "sepa")).unwrap();
    let debits = String::from_utf8(file("debits", "content", "sepa")).unwrap();
    for (file, parts) in [
        (&transfers, ["pain.001.001.09", "<CtrlSum>0.15</CtrlSum>", "<InstdAmt Ccy=\"EUR\">0.10</InstdAmt>"]),
        (&debits, ["pain.008.001.08", "<CtrlSum>0.60</CtrlSum>", "<EndToEndId>C-0000001</EndToEndId>"]),
    ] {
        for part in parts {
            assert!(file.contains(part), "{part} is not in {file}");
        }
    }
    office.assert_verifies();

    // The first delivery was broken: bob is credited 120 yen and the tax on them.
    let correction =
        office.json(&["correct", "tokyo.n1", "1", "1", "--reason", "it was broken", "--fee", "service"]);
    let note = &correction["credit_notes"];
    assert_eq!(shown(note), [("S-0000003", "bob", 120, 12, 132)]);
    assert_eq!(note[0]["kind"], json!({"credit_note": {"of": "S-0000001"}}));
    assert!(office.text(&["document", "S-0000003.xml"]).contains("<CreditNote "));
    assert_eq!(office.service.balances()["receivable:bob"], -132_000_000);
    let twice = ["correct", "tokyo.n1", "1", "1", "--reason", "again", "--fee", "service"];
    assert!(fault(&office.ask(&twice)).contains("it was broken"));
    office.assert_verifies();
}

#[test]
fn credit_of_the_system_is_earned_in_one_month_and_spent_in_another() {
    let office = Office::open();
    for month in ["2025-10", "2025-11"] {
        office.json(&["close", month, "--fee", "content"]);
    }
    // Of 40 XDZ that bob pays for a content, 34 are alice's.
    let alices = |month: &str| {
        let all = office.json(&["statement", "provider:alice", "--period", month, "--fee", "content"]);
        let one =
            all["content"].as_array().unwrap().iter().find(|one| one["currency"] == "XDZ").unwrap().clone();
        (one["payout_minor"].as_i64().unwrap(), one["payout_method"].as_str().unwrap().to_owned())
    };
    assert_eq!(alices("2025-11"), (34, "wallet".into()));
    let bobs = office.json(&["invoice", "bob", "--period", "2025-11", "--fee", "content"]);
    assert_eq!(shown(&bobs["content"]), [("C-0000003", "bob", 40, 4, 44)]);
    assert_eq!(bobs["content"][0]["currency"], "XDZ");

    let closed = office.json(&["close", "2025-12", "--fee", "content"]);
    assert_eq!(shown(&closed["content"]["invoices"]), [("C-0000004", "alice", 40, 4, 44)]);
    let accounts = office.content.get("/v1/accounts?limit=1000");
    let balance = |account: &str| {
        let all = accounts.as_array().unwrap().iter();
        let in_xdz = all.filter(|line| line["account"] == account && line["currency"] == "XDZ");
        in_xdz.map(|line| line["balance_micros"].as_i64().unwrap()).sum::<i64>()
    };
    // Her credit went into it whole; ten are left to pay.
    assert_eq!((balance("wallet:alice"), balance("receivable:alice")), (0, 10_000_000));
    assert_eq!(balance("receivable:bob"), 44_000_000);
    let refused = fault(&office.ask(&["document", "C-0000004.xml"]));
    assert!(refused.contains("XDZ is no currency of ISO 4217"), "{refused}");
    office.assert_verifies();
}
