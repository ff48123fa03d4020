//! The simulation against real sites: one trace, replayed over both.
//!
//! Every site is real processes in a network namespace of its own ([`crate::netns`]). The hops of the topology become
//! delay, so that the near are near. Requests come one after the other, each when what the one before brought about is
//! known to search, as the simulation's transfers take no time. Counted is what TCP carries between sites, and from the
//! origin, times the hops of the route: contents and what is said about them (heads, chunk lists, probes). Beside it are
//! the IP packets, which have headers and acknowledgements too, and the counters of the devices.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::api::gateway::SOURCE;
use common::config::show_bytes;
use http::Method;
use http_body_util::BodyExt;
use serde::Serialize;

use crate::content::Content;
use crate::netns::NetnsError;
use crate::netns::sites::{ORIGIN, STUDIO, Sites, connect, eventually};
use crate::traffic::model::{Model, Outcome, Rules, replay};
use crate::traffic::topology::Topology;
use crate::traffic::trace::{Request, Trace};
use crate::wire::{Outgoing, WireError};

/// Delay of a packet for each hop.
const HOP: Duration = Duration::from_millis(2);
/// Longest wait for one delivery; many processes start on few cores.
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(30);
/// Makes the contents.
const SEED: u64 = 23;

#[derive(Debug, thiserror::Error)]
pub enum RealError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("contents of families have no real counterpart here; leave --family and --alike out")]
    Families,
    #[error("wrong bytes came for {0}")]
    Wrong(String),
    #[error("writing {path} for the origin")]
    Write { path: String, source: std::io::Error },
}

/// What went between sites, and from the origin to them, in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    pub tcp_payload_bytes: u64,
    pub tcp_payload_byte_hops: u64,
    pub ip_bytes: u64,
    pub ip_byte_hops: u64,
}

/// Where requests were answered from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Answered {
    pub local: u64,
    pub from_peer: u64,
    pub from_origin: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RealReport {
    pub schema: &'static str,
    pub requests: usize,
    pub clients: usize,
    pub sites: usize,
    pub seconds: f64,
    pub simulated: Answered,
    /// Between sites and from the origin; without the clients' access links.
    pub simulated_bytes: u64,
    pub simulated_byte_hops: u64,
    pub answered: Answered,
    pub carried: Carried,
    /// What sites sent, by the counters of their devices and over the wire that joins these.
    pub sent_by_devices: u64,
    pub sent_over_wire: u64,
}

/// How many percent more than expected.
pub fn more(measured: u64, expected: u64) -> f64 {
    100.0 * (measured as f64 / expected.max(1) as f64 - 1.0)
}

/// One replay.
struct Replay<'a> {
    trace: &'a Trace,
    topology: &'a Topology,
    sites: Sites,
    /// Tokens, as the trace has the clients.
    tokens: Vec<String>,
}

/// Replays a trace over real sites; `dozo` is the program they run, `say` is told what is going on.
///
/// # Errors
/// `Unavailable` where this machine has no namespaces for us; anything that goes wrong with the sites.
pub fn run(
    trace: &Trace,
    topology: &Topology,
    dozo: &Path,
    say: impl Fn(&str),
) -> Result<RealReport, RealError> {
    if trace.parameters.family > 1 {
        return Err(RealError::Families);
    }
    let simulated = replay(Model::Sites, Rules::default(), trace, topology);
    say(&format!("starting {} sites in network namespaces", topology.sites.len()));
    let replay = Replay::start(trace, topology, dozo)?;
    let (before, begun) = (replay.carried(), Instant::now());
    let mut answered = Answered::default();
    for (n, request) in trace.requests.iter().enumerate() {
        if n % 100 == 0 {
            say(&format!("request {n} of {}", trace.requests.len()));
        }
        match replay.ask(request)?.as_str() {
            "hit" => answered.local += 1,
            "peer" => answered.from_peer += 1,
            _ => answered.from_origin += 1,
        }
    }
    replay.report(&simulated, answered, before, begun.elapsed())
}

impl<'a> Replay<'a> {
    fn start(trace: &'a Trace, topology: &'a Topology, dozo: &Path) -> Result<Self, RealError> {
        let names: Vec<&str> = topology.sites.iter().map(|site| site.name.as_str()).collect();
        let sites = Sites::start(dozo, &names, |net| {
            for (a, name) in names.iter().enumerate() {
                net.set_round_trip(ORIGIN, name, 2 * HOP * topology.from_origin(a).hops);
                for (b, other) in names.iter().enumerate().skip(a + 1) {
                    net.set_round_trip(name, other, 2 * HOP * topology.between(a, b).hops);
                }
            }
        })?;
        sites.add_provider(STUDIO, names[0])?;
        let mut replay = Self { trace, topology, sites, tokens: Vec::new() };
        for number in 0..trace.contents.len() {
            let (path, content) = (replay.sites.path(&replay.name(number)), replay.content(number));
            std::fs::write(&path, content.bytes(0, content.len as usize)).map_err(|source| {
                let path = path.display().to_string();
                RealError::Write { path, source }
            })?;
        }
        for number in 0..trace.contents.len() {
            replay.sites.await_held(&replay.name(number), &[], 1)?;
        }
        for (n, client) in trace.clients.iter().enumerate() {
            let keys = replay.sites.add_client(&format!("client{n}"), names[client.home])?;
            replay.tokens.push(keys.token);
        }
        Ok(replay)
    }

    /// Its name, and its path in the folder of the run.
    fn name(&self, content: usize) -> String {
        format!("{STUDIO}/{content}.bin")
    }

    fn content(&self, content: usize) -> Content {
        Content::new(SEED, content as u64, self.trace.contents[content].len)
    }

    /// Answers where the content came from.
    fn ask(&self, request: &Request) -> Result<String, RealError> {
        let (name, content) = (self.name(request.content), self.content(request.content));
        let home = self.topology.sites[self.trace.clients[request.client].home].name.as_str();
        let (url, token) = (self.sites.url(home, "gateway"), &self.tokens[request.client]);
        let path = format!("/v1/contents/{name}");
        let (source, is_right) = eventually(&format!("{name} is delivered"), DELIVERY_TIME_MAX, || {
            let got = self.sites.run_at(home, || async {
                let mut connection = connect(&url, token).await?;
                Ok(get(&mut connection, &path, content).await)
            })?;
            match got {
                Ok(got) => Ok(Ok(got)),
                Err(WireError::Refused { status: 503, code, message }) => {
                    Ok(Err(format!("{code}: {message}")))
                }
                Err(source) => Err(NetnsError::Request { what: format!("GET {path}"), source }),
            }
        })?;
        if !is_right {
            return Err(RealError::Wrong(name));
        }
        if source != "hit" {
            self.sites.await_held(&name, &[home], 1)?;
        }
        Ok(source)
    }

    fn carried(&self) -> Carried {
        let mut sums = Carried::default();
        let mut add = |a: &str, b: &str, hops: u32| {
            for carried in [self.sites.net.carried(a, b), self.sites.net.carried(b, a)] {
                sums.ip_bytes += carried.ip_bytes;
                sums.ip_byte_hops += carried.ip_bytes * u64::from(hops);
                sums.tcp_payload_bytes += carried.tcp_payload_bytes;
                sums.tcp_payload_byte_hops += carried.tcp_payload_bytes * u64::from(hops);
            }
        };
        let sites = &self.topology.sites;
        for (a, site) in sites.iter().enumerate() {
            add(ORIGIN, &site.name, self.topology.from_origin(a).hops);
            for (b, other) in sites.iter().enumerate().skip(a + 1) {
                add(&site.name, &other.name, self.topology.between(a, b).hops);
            }
        }
        sums
    }

    fn report(
        &self,
        simulated: &Outcome,
        answered: Answered,
        before: Carried,
        took: Duration,
    ) -> Result<RealReport, RealError> {
        let after = self.carried();
        let (mut sent_by_devices, mut sent_over_wire) = (0, 0);
        for site in &self.topology.sites {
            sent_by_devices += self.sites.net.sent_bytes(&site.name)?;
            sent_over_wire += self.sites.net.sent_by(&site.name);
        }
        let Outcome { local, from_peer, from_origin, .. } = *simulated;
        Ok(RealReport {
            schema: "dozo.bench.traffic.real/1",
            requests: self.trace.requests.len(),
            clients: self.trace.clients.len(),
            sites: self.topology.sites.len(),
            seconds: took.as_secs_f64(),
            simulated: Answered { local, from_peer, from_origin },
            simulated_bytes: simulated.origin_bytes + simulated.peer_bytes,
            simulated_byte_hops: simulated.byte_hops
                - u64::from(self.topology.access_hops) * simulated.access_bytes,
            answered,
            carried: Carried {
                ip_bytes: after.ip_bytes - before.ip_bytes,
                ip_byte_hops: after.ip_byte_hops - before.ip_byte_hops,
                tcp_payload_bytes: after.tcp_payload_bytes - before.tcp_payload_bytes,
                tcp_payload_byte_hops: after.tcp_payload_byte_hops - before.tcp_payload_byte_hops,
            },
            sent_by_devices,
            sent_over_wire,
        })
    }
}

/// Where a content came from, and whether its bytes are right.
async fn get(
    connection: &mut crate::wire::Connection,
    path: &str,
    content: Content,
) -> Result<(String, bool), WireError> {
    let response = connection.send(Method::GET, path, Outgoing::EMPTY).await?;
    let source = response.headers().get(&SOURCE).and_then(|source| source.to_str().ok());
    let source = source.unwrap_or_default().to_owned();
    let bytes = response.into_body().collect().await.map_err(WireError::Transport)?.to_bytes();
    Ok((source, bytes.len() as u64 == content.len && content.matches(0, &bytes)))
}

impl RealReport {
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _always_ok = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "{} requests of {} clients at {} real sites, one after the other, in {:.0} s",
            self.requests, self.clients, self.sites, self.seconds
        )?;
        writeln!(text, "\n{:<34} {:>12} {:>12} {:>12}", "answered", "local", "from a site", "the origin")?;
        for (who, Answered { local, from_peer, from_origin }) in
            [("simulated", self.simulated), ("measured", self.answered)]
        {
            writeln!(text, "{who:<34} {local:>12} {from_peer:>12} {from_origin:>12}")?;
        }
        let Carried { tcp_payload_bytes, tcp_payload_byte_hops, ip_bytes, ip_byte_hops } = self.carried;
        writeln!(
            text,
            "\n{:<34} {:>21} {:>21}",
            "between sites and from the origin", "bytes", "bytes x hops"
        )?;
        let (bytes, hops) = (self.simulated_bytes, self.simulated_byte_hops);
        writeln!(text, "{:<34} {:>21} {:>21}", "simulated", show_bytes(bytes), show_bytes(hops))?;
        for (what, of_bytes, of_hops) in [
            ("measured, what TCP carried", tcp_payload_bytes, tcp_payload_byte_hops),
            ("measured, IP packets", ip_bytes, ip_byte_hops),
        ] {
            let show = |value, simulated| format!("{} ({:+.2} %)", show_bytes(value), more(value, simulated));
            writeln!(text, "{what:<34} {:>21} {:>21}", show(of_bytes, bytes), show(of_hops, hops))?;
        }
        Ok(())
    }
}
