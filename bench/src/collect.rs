//! Collecting, as clients feel it: when the first byte of a content comes that their site does not hold, beside one that
//! it holds; while it comes in; and what a new version costs.
//!
//! One content after the other, in rounds, so that what the machine does otherwise touches all kinds of requests alike.
//! Every request has a connection of its own, which is made in its time, and every byte is checked.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::config::parse_bytes;
use common::hash::ContentHash;
use http::header::ETAG;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use serde::Serialize;

use crate::content::Content;
use crate::exchange::store;
use crate::target::{Endpoints, Target, TargetError, bucket_of, resolve};
use crate::wire::{Connection, Outgoing, WireError, read_text};

/// The first byte of what is collected comes within so many times what it takes where the content is held, and one
/// round trip.
const TIMES_HELD_MAX: f64 = 3.0;
/// What is asked for near the end of a content that is coming in.
const RANGE_LEN: u64 = 1 << 20;
/// Until a site has heard of a new version.
const NEWS_TIME_MAX: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub struct CollectArgs {
    /// The `endpoints.json` of the system, of two sites at least
    #[arg(long, env = "DOZO_ENDPOINTS", default_value = "dozo-data/endpoints.json")]
    endpoints: PathBuf,
    /// Publishes the contents at its home site
    #[arg(long, value_name = "CLIENT", default_value = "carol")]
    provider: String,
    /// Asks for them at another site, first
    #[arg(long, value_name = "CLIENT", default_value = "bob")]
    reader: String,
    /// Joins at the same site when half has come in
    #[arg(long, value_name = "CLIENT", default_value = "alice")]
    second_reader: String,
    #[arg(long, value_name = "BYTES", value_parser = |text: &str| parse_bytes(text), default_value = "1GiB")]
    size: u64,
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Leave the contents in the provider's bucket
    #[arg(long)]
    keep: bool,
    /// Write the result as one JSON object to a file, or to standard output with -
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{client} is at home at the provider's site; name one of another site")]
    SameSite { client: String },
    #[error("--size must be at least {} bytes", 4 * RANGE_LEN)]
    TooShort,
    #[error("{what} failed")]
    Request { what: String, source: WireError },
    #[error("{what}: wrong bytes came, or too few")]
    Wrong { what: String },
    #[error("the site of {client} has not heard of a new version within {NEWS_TIME_MAX:?}")]
    NoNews { client: String },
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timed {
    /// From before the connection was made to the first byte of the body.
    pub first_byte_ms: f64,
    pub total_s: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Round {
    /// Where it was published a moment ago.
    pub held_first: Timed,
    pub held_again: Timed,
    /// At the other site, which collects it.
    pub cold: Timed,
    /// There again, when it is held there, too.
    pub collected: Timed,
    /// Of another content, by the second reader when half of it has come in.
    pub joined: Timed,
    /// The same moment: the last but one MiB.
    pub near_the_end: Timed,
    /// A version of the first content that differs in two places.
    pub delta: Timed,
    /// What was fetched from other sites for it.
    pub delta_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CollectReport {
    pub schema: &'static str,
    pub size: u64,
    /// To make a connection to the provider's gateway.
    pub round_trip_ms: f64,
    pub rounds: Vec<Round>,
    /// Medians: when the first byte came of what was collected, and what was promised for it.
    pub cold_first_byte_ms: f64,
    pub bound_ms: f64,
    pub passed: bool,
}

/// A client at its home site.
struct Reader {
    client: String,
    token: String,
    bucket: String,
    address: SocketAddr,
    host: String,
}

impl Reader {
    async fn new(endpoints: &Endpoints, client: &str) -> Result<Self, CollectError> {
        let target = Target::of(endpoints, client)?;
        let (address, host) = resolve(&target.gateways[0]).await?;
        let known = endpoints.clients.iter().find(|known| known.name == client);
        let token = known.map(|client| client.token.clone()).unwrap_or_default();
        Ok(Self { client: client.to_owned(), token, bucket: bucket_of(client), address, host })
    }

    fn connect(&self) -> Result<Connection, CollectError> {
        let made = Connection::new(self.address, &self.host, &self.token);
        made.map_err(|error| failed("making a connection", error.into()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &'static str,
    ) -> Result<HeaderValue, CollectError> {
        let what = format!("{method} {path}");
        let sent = self.connect()?.send(method, path, Outgoing::Text(body.into())).await;
        let response = sent.map_err(|error| failed(&what, error))?;
        let etag = response.headers().get(ETAG).cloned();
        read_text(response.into_body()).await.map_err(|error| failed(&what, error))?;
        Ok(etag.unwrap_or(HeaderValue::from_static("")))
    }

    async fn put(&self, path: &str, content: Content) -> Result<ContentHash, CollectError> {
        let stored = store(&mut self.connect()?, path, content).await;
        Ok(stored.map_err(|error| failed(&format!("PUT {path}"), error))?.hash)
    }

    /// Reads `range` of a content, and checks it. `came` is told how many bytes have.
    async fn get(
        &self,
        path: &str,
        content: Content,
        range: std::ops::Range<u64>,
        mut came: impl FnMut(u64),
    ) -> Result<Timed, CollectError> {
        let what = format!("GET {path}");
        let (begun, mut connection) = (Instant::now(), self.connect()?);
        let header = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end - 1));
        let header = header.ok().filter(|_| range != (0..content.len));
        let sent = connection.send_range(Method::GET, path, header.as_ref(), Outgoing::EMPTY).await;
        let mut body = sent.map_err(|error| failed(&what, error))?.into_body();
        let (mut offset, mut matches, mut first) = (range.start, true, None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(&what, WireError::Transport(error)))?;
            let Ok(bytes) = frame.into_data() else { continue };
            first.get_or_insert_with(|| begun.elapsed());
            matches &= content.matches(offset, &bytes);
            offset += bytes.len() as u64;
            came(offset - range.start);
        }
        if !matches || offset != range.end {
            return Err(CollectError::Wrong { what });
        }
        let first_byte_ms = first.unwrap_or_default().as_secs_f64() * 1e3;
        Ok(Timed { first_byte_ms, total_s: begun.elapsed().as_secs_f64() })
    }

    async fn get_all(&self, path: &str, content: Content) -> Result<Timed, CollectError> {
        self.get(path, content, 0..content.len, |_| ()).await
    }
}

fn failed(what: &str, source: WireError) -> CollectError {
    CollectError::Request { what: what.to_owned(), source }
}

/// One of the requests of a round.
type Kind = fn(&Round) -> Timed;

struct Bench<'a> {
    args: &'a CollectArgs,
    seed: u64,
    provider: Reader,
    readers: [Reader; 2],
    /// The admin listeners of the readers' gateways.
    figures: Vec<Reader>,
}

/// Measures; `seed` makes the contents, of which none may have been there before. `say` is told what is going on.
///
/// # Errors
/// Anything that keeps a figure from being what it says: a request that fails, a byte that is wrong.
pub async fn run(args: &CollectArgs, seed: u64, say: impl Fn(&str)) -> Result<CollectReport, CollectError> {
    if args.size < 4 * RANGE_LEN {
        return Err(CollectError::TooShort);
    }
    let endpoints = Endpoints::read(&args.endpoints)?;
    let provider = Reader::new(&endpoints, &args.provider).await?;
    let site_of = |client: &str| endpoints.clients.iter().find(|c| c.name == client).map(|c| &c.site);
    let mut readers = Vec::new();
    for client in [&args.reader, &args.second_reader] {
        readers.push(Reader::new(&endpoints, client).await?);
        if site_of(client) == site_of(&args.provider) {
            return Err(CollectError::SameSite { client: client.clone() });
        }
    }
    let mut figures = Vec::new();
    let gateways = endpoints.sites.iter().filter(|site| Some(&site.name) == site_of(&args.reader));
    for gateway in gateways.flat_map(|site| &site.gateways) {
        let (address, host) = resolve(&gateway.admin).await?;
        let token = endpoints.admin_token.clone();
        figures.push(Reader { client: "operator".into(), token, bucket: String::new(), address, host });
    }
    let Ok(readers) = <[Reader; 2]>::try_from(readers) else {
        return Err(CollectError::SameSite { client: args.reader.clone() });
    };
    let bench = Bench { args, seed, provider, readers, figures };
    let bucket = format!("/v1/buckets/{}", bench.provider.bucket);
    bench.provider.send(Method::PUT, &bucket, r#"{"visibility":"public"}"#).await?;
    let round_trip_ms = bench.round_trip_ms().await?;
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        say(&format!("round {} of {}", round + 1, args.rounds));
        rounds.push(bench.round(round).await?);
    }
    Ok(CollectReport::of(args.size, round_trip_ms, rounds))
}

impl Bench<'_> {
    async fn round_trip_ms(&self) -> Result<f64, CollectError> {
        let mut times = Vec::new();
        for _ in 0..9 {
            let begun = Instant::now();
            let connected = tokio::net::TcpStream::connect(self.provider.address).await;
            connected.map_err(|error| failed("making a connection", WireError::Connect(error)))?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(times))
    }

    fn content(&self, id: u64) -> (String, Content) {
        let path = format!("/v1/contents/{}/collect-{:x}-{id}", self.provider.bucket, self.seed);
        (path, Content::new(self.seed, id, self.args.size))
    }

    /// Bytes that the readers' site has fetched from others so far.
    async fn fetched(&self) -> Result<u64, CollectError> {
        let mut sum = 0.0;
        for gateway in &self.figures {
            let what = "asking a gateway for its figures";
            let sent = gateway.connect()?.send(Method::GET, "/metrics", Outgoing::EMPTY).await;
            let response = sent.map_err(|error| failed(what, error))?;
            let text = read_text(response.into_body()).await.map_err(|error| failed(what, error))?;
            let text = String::from_utf8_lossy(&text);
            let lines = text.lines().filter(|line| line.starts_with("dozo_gateway_collected_bytes_total"));
            sum += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
        }
        Ok(sum as u64)
    }

    async fn round(&self, round: u64) -> Result<Round, CollectError> {
        let [reader, second] = &self.readers;
        let (path, content) = self.content(2 * round);
        self.provider.put(&path, content).await?;
        let held_first = self.provider.get_all(&path, content).await?;
        let held_again = self.provider.get_all(&path, content).await?;
        let cold = reader.get_all(&path, content).await?;
        let collected = reader.get_all(&path, content).await?;

        let (other, long) = self.content(2 * round + 1);
        self.provider.put(&other, long).await?;
        let (half_is_here, half) = tokio::sync::oneshot::channel();
        let mut half_is_here = Some(half_is_here);
        let tell = |came| {
            if 2 * came >= long.len
                && let Some(tell) = half_is_here.take()
            {
                // Who waits for it may have failed, and says so itself.
                let _ = tell.send(());
            }
        };
        let meanwhile = async {
            // Not told: the first has failed, and says so itself.
            let _ = half.await;
            let end = long.len - RANGE_LEN;
            let (whole, part) =
                (second.get_all(&other, long), second.get(&other, long, end - RANGE_LEN..end, |_| ()));
            tokio::try_join!(whole, part)
        };
        let (_, (joined, near_the_end)) =
            tokio::try_join!(reader.get(&other, long, 0..long.len, tell), meanwhile)?;

        let edited = content.edited([content.len / 4, content.len / 4 * 3]);
        let hash = self.provider.put(&path, edited).await?;
        self.await_news(reader, &path, hash).await?;
        let before = self.fetched().await?;
        let delta = reader.get_all(&path, edited).await?;
        let delta_bytes = self.fetched().await? - before;
        if !self.args.keep {
            for path in [&path, &other] {
                self.provider.send(Method::DELETE, path, "").await?;
            }
        }
        Ok(Round { held_first, held_again, cold, collected, joined, near_the_end, delta, delta_bytes })
    }

    async fn await_news(&self, reader: &Reader, path: &str, hash: ContentHash) -> Result<(), CollectError> {
        let (begun, newest) = (Instant::now(), format!("\"{hash}\""));
        while reader.send(Method::HEAD, path, "").await? != newest.as_str() {
            if begun.elapsed() > NEWS_TIME_MAX {
                return Err(CollectError::NoNews { client: reader.client.clone() });
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl CollectReport {
    fn of(size: u64, round_trip_ms: f64, rounds: Vec<Round>) -> Self {
        let first_byte =
            |of: fn(&Round) -> Timed| median(rounds.iter().map(|r| of(r).first_byte_ms).collect());
        let cold_first_byte_ms = first_byte(|round| round.cold);
        let bound_ms = TIMES_HELD_MAX * first_byte(|round| round.held_again) + round_trip_ms;
        let (schema, passed) = ("dozo.bench.collect/1", cold_first_byte_ms <= bound_ms);
        Self { schema, size, round_trip_ms, rounds, cold_first_byte_ms, bound_ms, passed }
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let kinds: [(&str, Kind); 7] = [
            ("held, first read", |round| round.held_first),
            ("held, again", |round| round.held_again),
            ("collected (cold)", |round| round.cold),
            ("then held there", |round| round.collected),
            ("joined half-way", |round| round.joined),
            ("a MiB near the end then", |round| round.near_the_end),
            ("a new version", |round| round.delta),
        ];
        let mib = self.size as f64 / f64::from(1 << 20);
        writeln!(text, "contents of {mib:.0} MiB, {} rounds: median (all rounds)", self.rounds.len())?;
        writeln!(text, "{:<24} {:<34} total, s", "", "first byte, ms")?;
        for (kind, of) in kinds {
            let values = |of: &dyn Fn(&Round) -> f64, digits| {
                let all: Vec<f64> = self.rounds.iter().map(of).collect();
                let list: Vec<String> = all.iter().map(|value| format!("{value:.digits$}")).collect();
                format!("{:.digits$} ({})", median(all), list.join(" "))
            };
            let first = values(&|round| of(round).first_byte_ms, 1);
            writeln!(text, "{kind:<24} {first:<34} {}", values(&|round| of(round).total_s, 2))?;
        }
        let fetched: Vec<f64> =
            self.rounds.iter().map(|round| round.delta_bytes as f64 / f64::from(1 << 20)).collect();
        writeln!(text, "a version that differs in two places: {:.1} MiB fetched", median(fetched))?;
        let verdict = if self.passed { "kept" } else { "NOT KEPT" };
        writeln!(
            text,
            "first byte cold {:.1} ms; {TIMES_HELD_MAX} x held and a round trip of {:.2} ms: {:.1} ms; {verdict}",
            self.cold_first_byte_ms, self.round_trip_ms, self.bound_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_cold_is_held_against_three_times_that_of_the_held() {
        let timed = |first_byte_ms| Timed { first_byte_ms, total_s: 1.0 };
        let round = |cold, held| Round {
            held_first: timed(9.0),
            held_again: timed(held),
            cold: timed(cold),
            collected: timed(3.0),
            joined: timed(3.0),
            near_the_end: timed(3.0),
            delta: timed(3.0),
            delta_bytes: 3 << 20,
        };
        let rounds = vec![round(6.0, 2.0), round(99.0, 2.0), round(5.0, 1.0)];
        let report = CollectReport::of(1 << 30, 0.5, rounds.clone());
        assert_eq!((report.cold_first_byte_ms, report.bound_ms, report.passed), (6.0, 6.5, true));
        assert!(!CollectReport::of(1 << 30, 0.5, vec![round(7.0, 2.0)]).passed);
        let text = report.to_text();
        assert!(text.contains("6.0 (6.0 99.0 5.0)") && text.contains("3.0 MiB fetched"), "{text}");
    }
}
