//! Clients away from home with a card: from the broadcast to the first byte, and every way to be refused.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::api::mobile_access::{NearbyGateway, Visit};
use common::api::search::ClientLimits;
use common::auth::ClusterSecret;
use common::card::{PrivateKey, Signer};
use common::id::{ClientId, SiteId};
use common::time::UnixMillis;
use common::visit::{Challenge, SignedRequest, Visitor, answer_message};
use serde_json::{Value, json};

use crate::both_ways;
use crate::cluster::{Cluster, Mode, Options, SECRET, SOON, eventually, unix_millis};
use crate::http::{Answer, Client};
use crate::process::dozo;
use crate::{etag_of, fresh_bytes};

fn secret() -> ClusterSecret {
    ClusterSecret::new(SECRET).unwrap()
}

fn now() -> UnixMillis {
    UnixMillis(unix_millis())
}

/// Nobody in particular, at mobile access.
fn access(cluster: &Cluster) -> Client {
    Client::new("anybody", &cluster.endpoints.mobile_access.as_ref().unwrap().http, "")
}

/// Where mobile access hears broadcasts.
fn hears(cluster: &Cluster) -> String {
    access(cluster).base.replace("http://127.0.0.1", "127.255.255.255")
}

/// A card that the test holds itself.
struct Card {
    client: String,
    home: String,
    key: PrivateKey,
}

impl Card {
    /// One that search knows.
    fn of(cluster: &Cluster, client: &Client, home: &str) -> Self {
        let card = Self::unknown(&client.name, home);
        let new = json!({"client": client.name, "card": card.key.public_key()});
        cluster.operator(&cluster.endpoints.search.http).send_json("POST", "/v1/cards", &new).expect(200);
        card
    }

    fn unknown(client: &str, home: &str) -> Self {
        Self { client: client.to_owned(), home: home.to_owned(), key: PrivateKey::generate() }
    }

    fn try_challenge(&self, cluster: &Cluster) -> Answer {
        let question = json!({"client": self.client, "home": self.home, "card": self.key.public_key()});
        access(cluster).send_json("POST", "/v1/challenge", &question)
    }

    #[track_caller]
    fn challenge(&self, cluster: &Cluster) -> String {
        let answer: Value = self.try_challenge(cluster).expect(200).json();
        answer["challenge"].as_str().unwrap().to_owned()
    }

    fn answer(&self, challenge: &str, session: &PrivateKey) -> Value {
        let session = session.public_key();
        let signature = self.key.signature(&answer_message(challenge, &session));
        json!({"challenge": challenge, "session": session, "signature": signature})
    }

    #[track_caller]
    fn connect(&self, cluster: &Cluster) -> Visiting {
        let session = PrivateKey::generate();
        let answer = self.answer(&self.challenge(cluster), &session);
        let visit = access(cluster).send_json("POST", "/v1/answer", &answer).expect(200).json();
        Visiting { visit, session }
    }
}

/// A visit that the test holds itself.
struct Visiting {
    visit: Visit,
    session: PrivateKey,
}

impl Visiting {
    fn authorization(&self, gateway: &NearbyGateway, method: &str, path: &str, at: UnixMillis) -> String {
        let request = SignedRequest { token: &self.visit.token, gateway: &gateway.name, method, path };
        request.authorization(&self.session, at)
    }

    fn send(&self, method: &str, path: &str) -> Answer {
        let gateway = &self.visit.gateways[0];
        let header = self.authorization(gateway, method, path, now());
        send_as(gateway, &header, method, path)
    }

    fn get(&self, name: &str) -> Answer {
        self.send("GET", &format!("/v1/contents/{name}"))
    }
}

fn send_as(gateway: &NearbyGateway, authorization: &str, method: &str, path: &str) -> Answer {
    let headers = [("authorization", authorization)];
    Client::new("visitor", &gateway.http, "").send(method, path, &headers, &[])
}

/// The command line, told where the cluster is.
pub fn run(cluster: &Cluster, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(dozo());
    command.args(arguments).current_dir(cluster.path("")).envs(variables.iter().copied());
    command.env("DOZO_ENDPOINTS", endpoints_file(cluster)).env("DOZO__CLUSTER__SECRET", SECRET);
    command.output().expect("dozo runs")
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[track_caller]
fn fails(output: &Output, why: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains(why) && err.contains("next: "), "{why:?} is not in {err}");
}

/// `dozo up` writes its own; for servers of their own this is what it would say.
pub fn endpoints_file(cluster: &Cluster) -> PathBuf {
    if cluster.mode == Mode::OneProcess {
        return cluster.path("endpoints.json");
    }
    let server =
        |at: &bench::target::ServerAddress| json!({"name": at.name, "http": at.http, "admin": at.admin});
    let plain = |at: &bench::target::ServerAddress| json!({"http": at.http, "admin": at.admin});
    let endpoints = &cluster.endpoints;
    let mut mobile_access = plain(endpoints.mobile_access.as_ref().unwrap());
    mobile_access["hear"] = hears(cluster).into();
    let sites = endpoints.sites.iter().map(|site| {
        let all = |servers: &[bench::target::ServerAddress]| servers.iter().map(server).collect::<Vec<_>>();
        json!({"name": site.name, "gateways": all(&site.gateways), "nodes": all(&site.nodes)})
    });
    let text = json!({
        "search": plain(&endpoints.search), "origin": plain(endpoints.origin.as_ref().unwrap()),
        "service_billing": plain(endpoints.service_billing.as_ref().unwrap()),
        "content_billing": plain(endpoints.content_billing.as_ref().unwrap()),
        "mobile_access": mobile_access, "admin_token": endpoints.admin_token,
        "sites": sites.collect::<Vec<_>>(), "clients": [],
    });
    let path = cluster.path("endpoints-for-cards.json");
    std::fs::write(&path, text.to_string()).expect("the folder is ours");
    path
}

/// The record of a delivery in the books of one fee.
fn record(cluster: &Cluster, service: bool, delivery: &str) -> Value {
    eventually("the delivery is booked", SOON, || {
        let path = format!("/v1/records?delivery={delivery}");
        let found: Value = cluster.billing(service).get(&path).expect(200).json();
        match found["records"].as_array().map(Vec::as_slice) {
            Some([record]) => Ok(record.clone()),
            _ => Err(found.to_string()),
        }
    })
}

both_ways! {
    fn a_card_brings_its_client_to_the_site_near_it_and_both_fees_know(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let carol = cluster.new_client("carol", "osaka");
        let bucket = cluster.bucket(&alice, "public");
        let (name, bytes) = (format!("{bucket}/film"), fresh_bytes(100_000));
        alice.put_content(&name, &bytes).expect(201);
        let card = format!("{}.card", carol.name);
        let told = succeeds(&run(cluster, &["card", "new", &card, "--client", &carol.name], &[]));
        assert!(told.contains("osaka"), "{told}");
        let again = run(cluster, &["card", "new", &card, "--client", &carol.name], &[]);
        fails(&again, "there already");

        let hears = hears(cluster);
        let begun = Instant::now();
        let connect = ["connect", "--card", &card, "--address", &hears, "--json"];
        let connected: Value = serde_json::from_str(&succeeds(&run(cluster, &connect, &[]))).unwrap();
        let connect_took = begun.elapsed();
        assert_eq!((&connected["site"], &connected["home"]), (&json!("tokyo"), &json!("osaka")));
        assert_eq!(connected["gateway"], json!(cluster.gateway("tokyo")));
        let visit = connected["visit"].as_str().unwrap();
        assert_eq!(visit, format!("{}.visit", carol.name));
        let told = succeeds(&run(cluster, &["get", &name, "film.out", "--visit", visit], &[]));
        println!(
            "card to visit {:.1} ms (process and all {connect_took:?}), to the last byte {:?}",
            connected["took_ms"],
            begun.elapsed()
        );
        assert!(std::fs::read(cluster.path("film.out")).unwrap() == bytes, "the bytes differ");
        let piped = run(cluster, &["connect", "--card", &card, "--address", &hears, "--get", &name, "-"], &[]);
        assert!(piped.status.success() && piped.stdout == bytes, "the bytes differ");
        let delivery = told.lines().find_map(|line| line.trim().strip_prefix("delivery ")).unwrap().trim();
        let home_delivery = carol.get_content(&name).expect(200).header("dozo-delivery").unwrap().to_owned();
        for service in [true, false] {
            let record = record(cluster, service, delivery);
            assert_eq!(record["client"], json!(carol.name));
            assert_eq!((&record["home"], &record["surrogate"]), (&json!("osaka"), &json!("tokyo")));
            assert_eq!(record["mobile_access"], json!("mobile-access"), "{record}");
            // 0.05 JPY of surcharge for the service, and none for the content: 10 for the purchase, 1 for the reference.
            let micros = |record: &Value| record["charge_micros"].as_i64().unwrap();
            let more = micros(&record) - micros(&self::record(cluster, service, &home_delivery));
            assert_eq!(more, if service { 50_000 } else { 9_000_000 });
        }
    }

    fn from_card_to_first_byte_in_one_go(cluster) {
        let carol = cluster.new_client("carol", "osaka");
        let bucket = cluster.bucket(&carol, "private");
        let bytes = fresh_bytes(50_000);
        carol.put_content(&format!("{bucket}/notes"), &bytes).expect(201);
        let card = Card::of(cluster, &carol, "osaka");
        let mut took = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            let visiting = card.connect(cluster);
            let gateway = &visiting.visit.gateways[0];
            let path = format!("/v1/contents/{bucket}/notes");
            let header = visiting.authorization(gateway, "GET", &path, now());
            let visitor = Client::new("visitor", &gateway.http, "");
            let mut incoming = visitor.open("GET", &path, &[("authorization", &header)]).unwrap();
            assert_eq!(incoming.status, 200);
            let first = incoming.read_exact(1).unwrap();
            took.push(begun.elapsed());
            assert_eq!(first[0], bytes[0]);
        }
        took.sort();
        println!("card to first byte: {took:?}");
        assert!(took[2] < Duration::from_secs(5), "{took:?}");
    }

    fn each_refusal_of_a_card_has_its_own_name(cluster) {
        let carol = cluster.new_client("carol", "osaka");
        let card = Card::of(cluster, &carol, "osaka");
        let session = PrivateKey::generate();
        let access = access(cluster);
        let refused = |answer: &Value, status| access.send_json("POST", "/v1/answer", answer).expect(status).code();

        // Who has no card of ours cannot tell a client that is there from one that is not.
        let stranger = Card::unknown(&carol.name, "osaka");
        let nobody = Card::unknown("nobody-at-all", "osaka");
        let mut told = Vec::new();
        for card in [&stranger, &nobody] {
            let answer = card.answer(&card.challenge(cluster), &session);
            let refusal = access.send_json("POST", "/v1/answer", &answer).expect(401);
            assert_eq!(refusal.code(), "card_unknown");
            let body: Value = refusal.json();
            told.push(body["message"].as_str().unwrap().replace(&card.client, "CLIENT"));
        }
        assert_eq!(told[0], told[1]);
        // Nor by naming somebody else's card: the signature is looked at first.
        let borrowed = card.challenge(cluster);
        assert_eq!(refused(&stranger.answer(&borrowed, &session), 401), "signature_invalid");
        // A card stands for its client alone.
        let bob = cluster.new_client("bob", "osaka");
        let as_bob = Card { client: bob.name.clone(), home: "osaka".into(), key: PrivateKey::from_seed_hex(&card.key.seed_hex()).unwrap() };
        assert_eq!(refused(&as_bob.answer(&as_bob.challenge(cluster), &session), 401), "card_unknown");

        let elsewhere = Card { client: carol.name.clone(), home: "nagoya".into(), key: PrivateKey::generate() };
        assert_eq!(elsewhere.try_challenge(cluster).expect(404).code(), "site_not_found");
        let alice = cluster.new_client("alice", "tokyo");
        let wrong_home = Card { home: "osaka".into(), ..Card::of(cluster, &alice, "tokyo") };
        let answer = wrong_home.answer(&wrong_home.challenge(cluster), &session);
        assert_eq!(refused(&answer, 421), "wrong_site");

        let text = card.challenge(cluster);
        let mut forged = text.clone();
        forged.replace_range(40..41, if &text[40..41] == "0" { "1" } else { "0" });
        assert_eq!(refused(&card.answer(&forged, &session), 401), "challenge_invalid");
        assert_eq!(refused(&card.answer("", &session), 401), "challenge_invalid");
        let mut expired = Challenge::read(&text).unwrap();
        expired.issued = UnixMillis(expired.issued.0 - 61_000);
        assert_eq!(refused(&card.answer(&expired.seal(&secret()), &session), 401), "challenge_expired");

        let answer = card.answer(&text, &session);
        access.send_json("POST", "/v1/answer", &answer).expect(200);
        assert_eq!(refused(&answer, 401), "challenge_replayed");
        // Also for another session, which the card could vouch for.
        assert_eq!(refused(&card.answer(&text, &PrivateKey::generate()), 401), "challenge_replayed");

        // Disabled between challenge and answer.
        let search = cluster.operator(&cluster.endpoints.search.http);
        let text = card.challenge(cluster);
        search.send_json("POST", "/v1/cards/disable", &json!({"client": carol.name})).expect(200);
        assert_eq!(refused(&card.answer(&text, &session), 403), "card_disabled");
        let card = Card::of(cluster, &carol, "osaka");
        let text = card.challenge(cluster);
        search.send_json("POST", &format!("/v1/clients/{}/disable", carol.name), &json!(null)).expect(200);
        assert_eq!(refused(&card.answer(&text, &session), 403), "client_disabled");
    }

    fn a_visitor_token_is_good_for_its_session_its_site_and_reading_alone(cluster) {
        let carol = cluster.new_client("carol", "osaka");
        let bucket = cluster.bucket(&carol, "private");
        let bytes = fresh_bytes(1000);
        carol.put_content(&format!("{bucket}/notes"), &bytes).expect(201);
        let card = Card::of(cluster, &carol, "osaka");
        let visiting = card.connect(cluster);
        let (gateway, path) = (&visiting.visit.gateways[0], format!("/v1/contents/{bucket}/notes"));
        let answer = visiting.send("GET", &path).expect(200);
        assert!(answer.body == bytes && answer.header("etag") == Some(&etag_of(&bytes)), "the bytes differ");
        assert_eq!(visiting.send("HEAD", &path).expect(200).header("content-length"), Some("1000"));

        let refused = |header: &str, method, path: &str, status| send_as(gateway, header, method, path).expect(status).code();
        // Once, and soon.
        let header = visiting.authorization(gateway, "GET", &path, now());
        send_as(gateway, &header, "GET", &path).expect(200);
        assert_eq!(refused(&header, "GET", &path, 401), "request_replayed");
        let late = visiting.authorization(gateway, "GET", &path, UnixMillis(now().0 - 90_000));
        assert_eq!(refused(&late, "GET", &path, 401), "request_replayed");
        // What was signed, and by the session.
        let header = visiting.authorization(gateway, "GET", &path, now());
        assert_eq!(refused(&header, "GET", &format!("{path}2"), 401), "signature_invalid");
        let other = NearbyGateway { name: "tokyo.g9".into(), ..gateway.clone() };
        let header = visiting.authorization(&other, "GET", &path, now());
        assert_eq!(refused(&header, "GET", &path, 401), "signature_invalid");
        let thief = Visiting { visit: visiting.visit.clone(), session: PrivateKey::generate() };
        assert_eq!(thief.send("GET", &path).expect(401).code(), "signature_invalid");
        assert_eq!(refused("Visit", "GET", &path, 401), "unauthenticated");
        assert_eq!(refused("Visit a b c", "GET", &path, 401), "unauthenticated");
        assert_eq!(refused(&format!("Bearer {}", visiting.visit.token), "GET", &path, 401), "unauthenticated");
        // At another site.
        let osaka = NearbyGateway { name: "osaka.g1".into(), http: cluster.gateway("osaka").to_owned() };
        let header = visiting.authorization(&osaka, "GET", &path, now());
        assert_eq!(send_as(&osaka, &header, "GET", &path).expect(401).code(), "visit_invalid");
        // For anything but reading contents.
        for (method, path) in [("DELETE", &*path), ("PUT", &*path), ("GET", "/v1/library"), ("GET", "/v1/usage")] {
            let header = visiting.authorization(gateway, method, path, now());
            assert_eq!(refused(&header, method, path, 401), "unauthenticated", "{method} {path}");
        }
        // What home would have said a while ago, and what a stranger says.
        let visitor = |expires, secret: &ClusterSecret| {
            let visitor = Visitor {
                home: SiteId::new("osaka").unwrap(),
                client: ClientId::new(&carol.name).unwrap(),
                card: card.key.public_key(),
                session: visiting.session.public_key(),
                site: SiteId::new("tokyo").unwrap(),
                mobile_access: visiting.visit.mobile_access.clone(),
                issued: UnixMillis(now().0 - 1000),
                expires,
                limits: ClientLimits::default(),
            };
            let visit = Visit { token: visitor.seal(secret), ..visiting.visit.clone() };
            let session = PrivateKey::from_seed_hex(&visiting.session.seed_hex()).unwrap();
            Visiting { visit, session }
        };
        let soon = UnixMillis(now().0 + 60_000);
        visitor(soon, &secret()).send("GET", &path).expect(200);
        let over = visitor(UnixMillis(now().0), &secret());
        assert_eq!(over.send("GET", &path).expect(401).code(), "visit_expired");
        let stranger = ClusterSecret::new("a stranger's secret of 32 characters").unwrap();
        assert_eq!(visitor(soon, &stranger).send("GET", &path).expect(401).code(), "visit_invalid");

        // A card that is disabled ends the visit within seconds.
        let search = cluster.operator(&cluster.endpoints.search.http);
        search.send_json("POST", "/v1/cards/disable", &json!({"client": carol.name})).expect(200);
        eventually("the visit has ended", SOON, || match visiting.get(&format!("{bucket}/notes")) {
            answer if answer.status == 403 && answer.code() == "card_disabled" => Ok(()),
            answer => Err(format!("{}", answer.status)),
        });
    }
}

#[test]
fn a_home_of_many_gateways_takes_an_answer_once_and_its_silence_has_a_name() {
    let options = Options { gateways: 2, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let cluster = &cluster;
    let carol = cluster.new_client("carol", "osaka");
    let bucket = cluster.bucket(&carol, "public");
    carol.put_content(&format!("{bucket}/notes"), b"what carol wrote").expect(201);
    let card = Card::of(cluster, &carol, "osaka");
    let session = PrivateKey::generate();

    // A challenge of one gateway, answered at the other, heard on the way and answered again at each.
    let gateways = cluster.site("osaka").gateways.iter().map(|at| cluster.operator(&at.http));
    let [first, second] = gateways.collect::<Vec<_>>().try_into().unwrap();
    let question = json!({"client": carol.name, "card": card.key.public_key(), "mobile_access": "mobile-access",
        "site": "tokyo"});
    let challenge: Value = first.send_json("POST", "/v1/peer/challenge", &question).expect(200).json();
    let answer = card.answer(challenge["challenge"].as_str().unwrap(), &session);
    second.send_json("POST", "/v1/peer/answer", &answer).expect(200);
    for gateway in [&first, &second] {
        let again = gateway.send_json("POST", "/v1/peer/answer", &answer).expect(401);
        assert_eq!(again.code(), "challenge_replayed");
    }
    // Only servers may ask that.
    let anybody = Client::new("anybody", &first.base, "");
    anybody.send_json("POST", "/v1/peer/challenge", &question).expect(401);

    // A second server near the home site is heard as well, and no help once that site is gone.
    let hears = hears(cluster);
    let (search, secret_file) = (&cluster.endpoints.search.http, cluster.path("cluster-secret"));
    let secret_file = secret_file.display().to_string();
    cluster.spawn_server(
        "another-access",
        &[
            "mobile-access",
            "--name",
            "near-osaka",
            "--near",
            "osaka",
            "--hear",
            &hears,
            "--listen",
            "127.0.0.1:0",
            "--search",
            search,
            "--cluster-secret-file",
            &secret_file,
        ],
    );
    let file = format!("{}.card", carol.name);
    succeeds(&run(cluster, &["card", "new", &file, "--client", &carol.name], &[]));
    let connect = ["connect", "--card", &file, "--address", &hears, "--json"];
    let brought_to = || -> Value {
        let told: Value = serde_json::from_str(&succeeds(&run(cluster, &connect, &[]))).unwrap();
        told["site"].clone()
    };
    eventually("the server near osaka answers first for once", SOON, || match brought_to() {
        site if site == "osaka" => Ok(()),
        site => Err(site.to_string()),
    });
    // At home with a card: nobody stands in for anybody.
    let told = succeeds(&run(
        cluster,
        &["get", &format!("{bucket}/notes"), "-", "--visit", &format!("{}.visit", carol.name)],
        &[],
    ));
    assert_eq!(told, "what carol wrote");

    // One gateway of home is enough, also while search still takes the other for alive.
    cluster.kill("osaka.g1");
    let visiting = card.connect(cluster);
    assert_eq!(visiting.visit.gateways.len(), 2);
    cluster.restart("osaka.g1");
    cluster.await_ready("osaka.g1");
    assert_eq!(visiting.get(&format!("{bucket}/notes")).expect(200).body, b"what carol wrote");
    // Search is not needed for a card that one of its home's gateways has seen, nor for a visitor.
    let before = card.connect(cluster);
    cluster.kill("search");
    card.connect(cluster);
    for gateway in &before.visit.gateways {
        let path = format!("/v1/contents/{bucket}/notes");
        let header = before.authorization(gateway, "GET", &path, now());
        send_as(gateway, &header, "GET", &path).expect(200);
    }
    cluster.restart("search");
    cluster.await_ready("search");

    cluster.kill("osaka.g1");
    cluster.kill("osaka.g2");
    let refused = card.try_challenge(cluster).expect(503);
    assert_eq!(refused.code(), "home_unreachable");
    fails(&run(cluster, &connect, &[]), "home_unreachable");
    // Who was here before goes on with what the site has.
    assert_eq!(visiting.get(&format!("{bucket}/notes")).expect(200).body, b"what carol wrote");
    let nobody = ["connect", "--card", &file, "--address", "127.255.255.255:1", "--wait-ms", "300"];
    fails(&run(cluster, &nobody, &[]), "no mobile access server answered");
    let gone = ["connect", "--card", &file, "--mobile-access", "127.0.0.1:1"];
    fails(&run(cluster, &gone, &[]), "is not reached");

    let refused = (0..1000).map(|_| card.try_challenge(cluster)).find(|answer| answer.status == 429);
    let refused = refused.expect("a thousand questions are too many");
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("too_many_requests", Some("1")));
}

/// SoftHSM, a token in software, if it is installed; where CI runs it must be.
fn soft_token() -> Option<&'static str> {
    const PLACES: [&str; 3] = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    let found = PLACES.into_iter().find(|place| std::path::Path::new(place).exists());
    if found.is_none() {
        let how = "SoftHSM is not installed (Debian: apt-get install softhsm2)";
        assert!(std::env::var_os("CI").is_none(), "{how}");
        println!("skipped: {how}");
    }
    found
}

#[test]
fn a_card_may_be_in_a_token_that_never_gives_its_key_away() {
    let Some(library) = soft_token() else { return };
    let cluster = Cluster::shared(Mode::OneProcess);
    let carol = cluster.new_client("carol", "osaka");
    let bucket = cluster.bucket(&carol, "private");
    carol.put_content(&format!("{bucket}/notes"), b"behind a PIN").expect(201);
    let folder = cluster.path(&format!("{}-token", carol.name));
    std::fs::create_dir_all(folder.join("tokens")).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("softhsm2.conf"), format!("directories.tokendir = {}\n", path("tokens"))).unwrap();
    std::fs::write(path("pin"), "2468\n").unwrap();
    std::fs::write(path("wrong-pin"), "1357").unwrap();
    let conf = path("softhsm2.conf");
    let variables = [("SOFTHSM2_CONF", conf.as_str())];
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "travel", "--so-pin", "8642", "--pin", "2468"])
        .envs(variables)
        .output()
        .expect("softhsm2-util is there with the library");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let (card, pin, wrong_pin, visit) =
        (path("carol.card"), path("pin"), path("wrong-pin"), path("carol.visit"));
    let in_token = |token, pin| {
        let mut new = vec!["card", "new", &card, "--client", &carol.name, "--pkcs11", library];
        new.extend(["--token", token, "--object", "dozo", "--pin-file", pin]);
        run(cluster, &new, &variables)
    };
    fails(&in_token("no-such", &pin), "there are: travel");
    fails(&in_token("travel", &wrong_pin), "unlocking");
    succeeds(&in_token("travel", &pin));
    let text = std::fs::read_to_string(&card).unwrap();
    assert!(text.contains("pkcs11") && !text.contains("private_key"), "{text}");
    std::fs::remove_file(&card).unwrap();
    fails(&in_token("travel", &pin), "has an object dozo already");
    std::fs::write(&card, &text).unwrap();

    let hears = hears(cluster);
    let connect =
        |pin| run(cluster, &["connect", "--card", &card, "--address", &hears, "--pin-file", pin], &variables);
    fails(&connect(&wrong_pin), "unlocking");
    let told = succeeds(&connect(&pin));
    assert!(told.contains("served at tokyo"), "{told}");
    println!("with a token: {told}");
    // Each request is signed by the session: the token may be put away.
    let notes = format!("{bucket}/notes");
    assert_eq!(succeeds(&run(cluster, &["get", &notes, "-", "--visit", &visit], &[])), "behind a PIN");
    let without_pin = run(cluster, &["connect", "--card", &card, "--address", &hears], &variables);
    assert_eq!(without_pin.status.code(), Some(2), "{}", String::from_utf8_lossy(&without_pin.stderr));
}
