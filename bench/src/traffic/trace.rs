//! One trace of requests, the same for every model: contents with sizes, clients with a home and the times at which
//! they run, and who asks for what when. The same parameters give the same trace, byte for byte.
//!
//! - **Popularity** is Zipf's: the content of rank r is asked for with a probability in proportion to r^-alpha.
//!   Published: 0.64-0.83 for web requests (Breslau, Cao, Fan, Phillips and Shenker, "Web caching and Zipf-like
//!   distributions", INFOCOM 1999). Each request chooses by itself; clients may ask for what they have.
//! - **Sizes** are log-normal in the body and Pareto in the tail (Barford and Crovella, "Generating representative
//!   web workloads", SIGMETRICS 1998), the tail with their exponent 1.1, and bounded. The scale is ours: songs and
//!   clips rather than web pages.
//! - **Clients are switched on and off** in turns, both with exponential lengths; a session lasts an hour in the mean
//!   (median sessions of about an hour: Saroiu, Gummadi and Gribble, "A measurement study of peer-to-peer file
//!   sharing systems", MMCN 2002). Availability is the share of the time that a client is on. A client asks only while
//!   it is on.
//! - **Likeness**: contents come in families of one length that share a part of their bytes, as versions of one thing
//!   do; what that saves only a model with deduplication can tell.
//!
//! Contents, sizes, homes, and who asks for what are drawn apart from times: at another availability or alpha all
//! else stays as it was.

use serde::{Deserialize, Serialize};

use crate::content::Choices;
use crate::traffic::topology::{SiteIndex, Topology};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceParameters {
    pub seed: u64,
    pub clients: usize,
    pub contents: usize,
    pub requests: usize,
    pub duration_s: u64,
    /// Exponent of popularity; 0: all contents are equally popular.
    pub zipf_alpha: f64,
    /// Share of the time that a client is on, above 0 and at most 1.
    pub availability: f64,
    /// Mean length of the time that a client is on without a break.
    pub session_s: f64,
    pub sizes: Sizes,
    /// Contents that share bytes; 1: none do.
    pub family: usize,
    /// Share of its bytes that a content has in common with its family.
    pub alike: f64,
}

impl Default for TraceParameters {
    fn default() -> Self {
        Self {
            seed: 1,
            clients: 2_000,
            contents: 10_000,
            requests: 200_000,
            duration_s: 7 * 86_400,
            zipf_alpha: 0.8,
            availability: 0.3,
            session_s: 3_600.0,
            sizes: Sizes::default(),
            family: 1,
            alike: 0.0,
        }
    }
}

/// How long contents are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sizes {
    pub median: f64,
    /// Standard deviation of the logarithm.
    pub sigma: f64,
    /// Share of contents in the tail, which begins where the body has as much above it.
    pub tail: f64,
    pub tail_alpha: f64,
    pub min: u64,
    pub max: u64,
}

impl Sizes {
    /// Short enough to be sent by real sites on one machine.
    pub const SMALL: Self =
        Self { median: 400.0 * 1024.0, sigma: 0.9, tail: 0.0, tail_alpha: 1.1, min: 32 << 10, max: 4 << 20 };
}

impl Default for Sizes {
    fn default() -> Self {
        Self { median: 4.0 * 1048576.0, sigma: 1.3, tail: 0.07, tail_alpha: 1.1, min: 4 << 10, max: 4 << 30 }
    }
}

/// A client, as an index into [`Trace::clients`].
pub type ClientIndex = usize;
/// A content, as an index into [`Trace::contents`]; also its rank in popularity.
pub type ContentIndex = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub len: u64,
    pub family: usize,
    /// Bytes of `len` that every content of the family has.
    pub alike_len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub home: SiteIndex,
    /// Times at which it is on, in milliseconds from the beginning: from, until (excluded); in order, apart.
    pub on: Vec<(u64, u64)>,
}

impl Client {
    pub fn is_on(&self, at_ms: u64) -> bool {
        let next = self.on.partition_point(|(from, _)| *from <= at_ms);
        next > 0 && at_ms < self.on[next - 1].1
    }

    fn on_ms(&self) -> u64 {
        self.on.iter().map(|(from, until)| until - from).sum()
    }

    /// The time that is `offset_ms` into its time on.
    fn on_at(&self, mut offset_ms: u64) -> u64 {
        for (from, until) in &self.on {
            if offset_ms < until - from {
                return from + offset_ms;
            }
            offset_ms -= until - from;
        }
        self.on.last().map_or(0, |(_, until)| until.saturating_sub(1))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Request {
    /// Milliseconds from the beginning.
    pub at_ms: u64,
    pub client: ClientIndex,
    pub content: ContentIndex,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    pub parameters: TraceParameters,
    pub contents: Vec<Content>,
    pub clients: Vec<Client>,
    /// In the order of their times.
    pub requests: Vec<Request>,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("trace: {0}")]
pub struct InvalidTrace(String);

/// Streams of random numbers that must not depend on each other.
#[derive(Debug, Clone, Copy)]
enum Stream {
    Sizes = 1,
    Homes,
    Sessions,
    Clients,
    Contents,
    Times,
}

impl TraceParameters {
    fn choices(&self, stream: Stream) -> Choices {
        Choices::new(self.seed, stream as u64)
    }

    fn check(&self) -> Result<(), InvalidTrace> {
        let is_wrong = |name: &str, value: f64, from: f64, to: f64| {
            let is_right = value >= from && value <= to;
            if is_right {
                Ok(())
            } else {
                Err(InvalidTrace(format!("{name} is {value}; it is {from} to {to}")))
            }
        };
        is_wrong("clients", self.clients as f64, 1.0, 1e7)?;
        is_wrong("contents", self.contents as f64, 1.0, 1e8)?;
        is_wrong("duration_s", self.duration_s as f64, 1.0, 1e9)?;
        is_wrong("zipf_alpha", self.zipf_alpha, 0.0, 5.0)?;
        is_wrong("availability", self.availability, 0.001, 1.0)?;
        is_wrong("session_s", self.session_s, 1.0, 1e9)?;
        is_wrong("alike", self.alike, 0.0, 1.0)?;
        is_wrong("family", self.family as f64, 1.0, 1e6)?;
        let Sizes { median, sigma, tail, tail_alpha, min, max } = self.sizes;
        is_wrong("sizes.median", median, 1.0, 1e15)?;
        is_wrong("sizes.sigma", sigma, 0.0, 10.0)?;
        is_wrong("sizes.tail", tail, 0.0, 1.0)?;
        is_wrong("sizes.tail_alpha", tail_alpha, 0.1, 100.0)?;
        is_wrong("sizes.min", min as f64, 1.0, max as f64)
    }

    /// Draws the trace.
    pub fn generate(&self, topology: &Topology) -> Result<Trace, InvalidTrace> {
        self.check()?;
        let contents = self.draw_contents();
        let clients = self.draw_clients(topology);
        let requests = self.draw_requests(&clients);
        Ok(Trace { parameters: self.clone(), contents, clients, requests })
    }

    fn draw_contents(&self) -> Vec<Content> {
        let mut choices = self.choices(Stream::Sizes);
        let families = self.contents.div_ceil(self.family).max(1);
        let lens: Vec<u64> = (0..families).map(|_| self.sizes.draw(&mut choices)).collect();
        let alike = if self.family == 1 { 0.0 } else { self.alike };
        // Neighbours in popularity are no family: members are as far apart as they can be.
        let content = |i: usize| {
            let (family, len) = (i % families, lens[i % families]);
            Content { len, family, alike_len: (len as f64 * alike) as u64 }
        };
        (0..self.contents).map(content).collect()
    }

    fn draw_clients(&self, topology: &Topology) -> Vec<Client> {
        let mut homes = self.choices(Stream::Homes);
        let shares: Vec<u64> = topology.sites.iter().map(|site| u64::from(site.clients)).collect();
        let total: u64 = shares.iter().sum();
        let mut home = || {
            let mut place = homes.below(total);
            shares.iter().position(|share| {
                let is_here = place < *share;
                place = place.saturating_sub(*share);
                is_here
            })
        };
        (0..self.clients)
            .map(|i| Client { home: home().unwrap_or(0), on: self.draw_sessions(i as u64) })
            .collect()
    }

    /// The times of one client: in the long run as at the beginning, it is on with the probability `availability`.
    fn draw_sessions(&self, client: u64) -> Vec<(u64, u64)> {
        let end = self.duration_s * 1000;
        if self.availability >= 1.0 {
            return vec![(0, end)];
        }
        let mut choices = Choices::new(self.seed ^ crate::content::mix(client), Stream::Sessions as u64);
        let off_s = self.session_s * (1.0 - self.availability) / self.availability;
        let mut is_on = choices.unit() < self.availability;
        let mut at = 0;
        let mut on = Vec::new();
        while at < end {
            let mean_s = if is_on { self.session_s } else { off_s };
            let until = at.saturating_add((exponential(&mut choices, mean_s) * 1000.0) as u64 + 1).min(end);
            if is_on {
                on.push((at, until));
            }
            (at, is_on) = (until, !is_on);
        }
        on
    }

    fn draw_requests(&self, clients: &[Client]) -> Vec<Request> {
        let popularity = Zipf::new(self.contents, self.zipf_alpha);
        let (mut who, mut what, mut when) =
            (self.choices(Stream::Clients), self.choices(Stream::Contents), self.choices(Stream::Times));
        let ever_on = clients.iter().any(|client| !client.on.is_empty());
        let count = if ever_on { self.requests } else { 0 };
        let mut requests: Vec<Request> = (0..count)
            .map(|_| {
                let content = popularity.draw(&mut what);
                let mut client = who.below(clients.len() as u64) as usize;
                // Who is never on asks for nothing; the next one does instead.
                while clients[client].on.is_empty() {
                    client = (client + 1) % clients.len();
                }
                let offset = when.below(clients[client].on_ms());
                Request { at_ms: clients[client].on_at(offset), client, content }
            })
            .collect();
        requests.sort_unstable();
        requests
    }
}

impl Sizes {
    fn draw(&self, choices: &mut Choices) -> u64 {
        let body = |z: f64| self.median * (self.sigma * z).exp();
        let len = if choices.unit() < self.tail {
            // The tail begins where the body has the tail's share above it.
            let start = body(normal_quantile(1.0 - self.tail.min(0.999)));
            start / (1.0 - choices.unit()).powf(1.0 / self.tail_alpha)
        } else {
            body(normal(choices))
        };
        (len as u64).clamp(self.min, self.max)
    }
}

fn exponential(choices: &mut Choices, mean: f64) -> f64 {
    -mean * (1.0 - choices.unit()).ln()
}

/// Standard normal (Box and Muller).
fn normal(choices: &mut Choices) -> f64 {
    let radius = (-2.0 * (1.0 - choices.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * choices.unit()).cos()
}

/// The value that a standard normal number is below with probability `p` (by bisection of the error function of
/// Abramowitz and Stegun 7.1.26; good to 1e-6).
fn normal_quantile(p: f64) -> f64 {
    let below = |x: f64| {
        let t = 1.0 / (1.0 + 0.327_591_1 * (x.abs() / std::f64::consts::SQRT_2));
        let poly = t
            * (0.254_829_592
                + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
        let erf = 1.0 - poly * (-x * x / 2.0).exp();
        if x >= 0.0 { (1.0 + erf) / 2.0 } else { (1.0 - erf) / 2.0 }
    };
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if below(middle) < p { low = middle } else { high = middle }
    }
    low
}

/// Zipf's distribution over ranks 0..n.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(n: usize, alpha: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=n).map(|rank| (rank as f64).powf(-alpha));
        let cumulative = weights.map(|weight| {
            sum += weight;
            sum
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self, choices: &mut Choices) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let place = choices.unit() * total;
        self.cumulative.partition_point(|sum| *sum <= place).min(self.cumulative.len() - 1)
    }
}

impl Trace {
    /// Bytes of all answers.
    pub fn requested_bytes(&self) -> u64 {
        self.requests.iter().map(|request| self.contents[request.content].len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TraceParameters {
        TraceParameters { clients: 300, contents: 500, requests: 20_000, ..TraceParameters::default() }
    }

    fn trace(parameters: &TraceParameters) -> Trace {
        parameters.generate(&Topology::tree(4, 4).unwrap()).unwrap()
    }

    #[test]
    fn the_same_parameters_give_the_same_trace_and_another_seed_another() {
        assert_eq!(trace(&small()), trace(&small()));
        assert_ne!(trace(&small()).requests, trace(&TraceParameters { seed: 2, ..small() }).requests);
        let json = serde_json::to_string(&trace(&small())).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&json).unwrap(), trace(&small()));
    }

    #[test]
    fn clients_are_on_as_long_as_they_should_and_ask_only_then() {
        for availability in [0.1, 0.5, 1.0] {
            let parameters = TraceParameters { availability, ..small() };
            let trace = trace(&parameters);
            let on: u64 = trace.clients.iter().map(Client::on_ms).sum();
            let share = on as f64 / (trace.clients.len() as u64 * parameters.duration_s * 1000) as f64;
            assert!((share / availability - 1.0).abs() < 0.1, "{share} instead of {availability}");
            assert!(trace.requests.iter().all(|r| trace.clients[r.client].is_on(r.at_ms)));
            assert!(trace.requests.is_sorted());
            assert_eq!(trace.requests.len(), parameters.requests);
            for client in &trace.clients {
                assert!(client.on.windows(2).all(|pair| pair[0].1 < pair[1].0), "sessions are apart");
            }
        }
    }

    #[test]
    fn popularity_has_the_slope_that_was_asked_for() {
        for alpha in [0.0, 0.7, 1.2] {
            let trace = trace(&TraceParameters { zipf_alpha: alpha, requests: 200_000, ..small() });
            let mut counts = vec![0f64; trace.contents.len()];
            trace.requests.iter().for_each(|request| counts[request.content] += 1.0);
            let decade = |from: usize| counts[from..from * 2].iter().sum::<f64>();
            // Ranks 64..128 against 16..32: four times the rank, four times as many ranks.
            let slope = 1.0 - (decade(63) / decade(15)).ln() / 4f64.ln();
            assert!((slope - alpha).abs() < 0.1, "{slope} instead of {alpha}");
        }
    }

    #[test]
    fn sizes_have_the_median_the_tail_and_the_bounds() {
        let trace = trace(&TraceParameters { contents: 20_000, requests: 1, ..small() });
        let mut lens: Vec<u64> = trace.contents.iter().map(|content| content.len).collect();
        lens.sort_unstable();
        let median = lens[lens.len() / 2] as f64 / 1048576.0;
        assert!((3.7..5.2).contains(&median), "{median} MiB");
        assert!(lens[0] >= 4 << 10 && *lens.last().unwrap() <= 4 << 30);
        let start = 4.0 * 1048576.0 * (1.3 * normal_quantile(0.93)).exp();
        let above = lens.iter().filter(|len| **len as f64 > start).count() as f64 / lens.len() as f64;
        assert!((0.11..0.16).contains(&above), "the tail and what the body has there: {above}");
    }

    #[test]
    fn the_normal_quantile_is_the_known_one() {
        for (p, x) in [(0.5, 0.0), (0.93, 1.475_791), (0.975, 1.959_964), (0.05, -1.644_854)] {
            assert!((normal_quantile(p) - x).abs() < 1e-4, "{p}: {}", normal_quantile(p));
        }
    }

    #[test]
    fn at_another_availability_the_same_clients_ask_for_the_same_contents() {
        let asked = |availability| {
            let trace = trace(&TraceParameters { availability, ..small() });
            let mut counts = vec![0; trace.contents.len()];
            trace.requests.iter().for_each(|request| counts[request.content] += 1);
            (counts, trace.contents)
        };
        assert_eq!(asked(0.3), asked(0.9));
    }

    #[test]
    fn families_are_as_large_and_as_alike_as_asked_for() {
        let trace = trace(&TraceParameters { family: 4, alike: 0.5, ..small() });
        let mut members = std::collections::BTreeMap::new();
        for content in &trace.contents {
            *members.entry(content.family).or_insert(0) += 1;
            assert_eq!(content.alike_len, content.len / 2);
        }
        assert!(members.values().all(|count| *count == 4));
        let alone = small().generate(&Topology::tree(1, 1).unwrap()).unwrap();
        assert!(alone.contents.iter().all(|content| content.alike_len == 0));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_bound() {
        let topology = Topology::tree(1, 1).unwrap();
        let wrong = [
            TraceParameters { availability: 0.0, ..small() },
            TraceParameters { zipf_alpha: -1.0, ..small() },
            TraceParameters { clients: 0, ..small() },
            TraceParameters { zipf_alpha: f64::NAN, ..small() },
            TraceParameters { sizes: Sizes { min: 9, max: 8, ..Sizes::default() }, ..small() },
        ];
        for parameters in wrong {
            let error = parameters.generate(&topology).unwrap_err();
            assert!(error.to_string().contains("; it is"), "{error}");
        }
    }
}
