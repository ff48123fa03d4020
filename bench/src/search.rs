//! Search alone: how many announcements and lookups a second it does, with how many contents, at what cost; and how long
//! until what is announced is found.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::api::search::{
    AnnounceBatch, Announcement, Announcer, ListQuery, NewBucket, NewClient, Registration, SearchClient,
    Visibility,
};
use common::auth::{ClusterSecret, Role};
use common::client::{CallError, HttpClient, ServerClient};
use common::hash::ContentHash;
use common::id::{ClientId, InvalidId, NodeId, ServerName};
use common::name::ContentName;
use common::time::Clock;
use common::version::{HybridTime, Version};
use futures_util::future::try_join_all;
use serde::Serialize;

use crate::latency::Latency;
use crate::process;

const START_TIME_MAX: Duration = Duration::from_secs(60);
const SECRET: &str = "of a search that is started for a measurement";
/// Keys of a bucket; as many buckets as the contents need.
const BUCKET_LEN: u64 = 10_000;

#[derive(Clone)]
pub struct SearchPlan {
    /// A search that runs already, with its cluster's secret.
    pub running: Option<(String, ClusterSecret)>,
    /// The `dozo` program that is started otherwise.
    pub dozo: PathBuf,
    /// Its database; an SQLite file in a temporary folder if none is given.
    pub database: Option<String>,
    /// Contents that are announced before lookups begin.
    pub contents: u64,
    /// Announcements in a batch.
    pub batch: u64,
    /// Nodes that announce, and clients that look up, at the same time.
    pub connections: u64,
    /// How long lookups, and single announcements, are measured for.
    pub duration: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    pub count: u64,
    pub per_s: f64,
    /// Of search's process; a database server's is not in it.
    pub cpu_us: Option<f64>,
    /// Of one request: a batch, a lookup, a page.
    pub p50_us: f64,
    pub p99_us: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchResult {
    pub schema: &'static str,
    pub contents: u64,
    /// All contents, in batches.
    pub announcements: Figures,
    pub lookups: Figures,
    /// Pages of 100 contents of a bucket.
    pub listings: Figures,
    /// Pages of 1,000 common prefixes.
    pub prefixes: Figures,
    /// Parts of names, each of one content.
    pub finds: Figures,
    /// From the begin of an announcement, alone in its batch, until a lookup has found it.
    pub findable: Figures,
}

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("{path} cannot be run")]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("search is not ready within {START_TIME_MAX:?}")]
    NotReady,
    #[error("search did not do what was asked")]
    Refused(#[from] CallError),
    #[error("search took {taken} of {sent} announcements")]
    NotTaken { taken: u64, sent: u64 },
    #[error(transparent)]
    Id(#[from] InvalidId),
}

/// Ends the process, and removes its folder.
struct Started {
    child: Child,
    folder: PathBuf,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}

/// One search under measurement.
struct Bench {
    plan: SearchPlan,
    client: SearchClient,
    pid: Option<u32>,
    _started: Option<Started>,
}

pub async fn run(plan: SearchPlan) -> Result<SearchResult, SearchError> {
    let bench = Bench::start(plan).await?;
    bench.enter_directory().await?;
    let announcements = bench.announce().await?;
    let contents = bench.plan.contents;
    let lookups = bench
        .ask(async |client, dice| {
            client.lookup(&name(dice % contents)?).await.map(drop).map_err(SearchError::from)
        })
        .await?;
    let listings = bench
        .ask(async |client, dice| {
            let query = ListQuery { limit: Some(100), ..ListQuery::default() };
            let bucket = name(dice % contents)?.bucket_name();
            client.list(&bucket, &query).await.map(drop).map_err(SearchError::from)
        })
        .await?;
    let prefixes = bench
        .ask(async |client, dice| {
            // Names are hexadecimal behind the last slash: some prefixes are of many contents, most are of one.
            let query = ListQuery {
                prefix: "photos/2026/".to_owned(),
                delimiter: Some("f".to_owned()),
                ..ListQuery::default()
            };
            let bucket = name(dice % contents)?.bucket_name();
            client.list(&bucket, &query).await.map(drop).map_err(SearchError::from)
        })
        .await?;
    let finds = bench
        .ask(async |client, dice| {
            let part = format!("{:016x}", scattered(dice % contents));
            client.find(&part, "", 10).await.map(drop).map_err(SearchError::from)
        })
        .await?;
    let findable = bench.findable().await?;
    let schema = "dozo.bench.search/1";
    Ok(SearchResult { schema, contents, announcements, lookups, listings, prefixes, finds, findable })
}

/// Numbers that look like chance, each once.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn name(number: u64) -> Result<ContentName, InvalidId> {
    let bucket = number / BUCKET_LEN;
    format!("bucket-{bucket}/photos/2026/{:016x}.jpg", scattered(number)).parse()
}

fn hold(number: u64, provider: &ClientId) -> Result<Announcement, InvalidId> {
    Ok(Announcement::Hold {
        name: name(number)?,
        version: Version { time: HybridTime(1), hash: ContentHash::of(&number.to_le_bytes()) },
        len: 1000 + number,
        media_type: "image/jpeg".to_owned(),
        provider: provider.clone(),
    })
}

impl Bench {
    async fn start(plan: SearchPlan) -> Result<Self, SearchError> {
        let (base, secret, started) = match &plan.running {
            Some((base, secret)) => (base.clone(), secret.clone(), None),
            None => spawn(&plan)?,
        };
        let client =
            SearchClient::new(ServerClient::new(HttpClient::new(), secret, "bench", Clock::System), &base);
        let begin = Instant::now();
        while client.buckets().await.is_err() {
            if begin.elapsed() > START_TIME_MAX {
                return Err(SearchError::NotReady);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let port = base.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let pid = port.and_then(|port| process::listening(&[port]).remove(&port));
        Ok(Self { plan, client, pid, _started: started })
    }

    async fn enter_directory(&self) -> Result<(), SearchError> {
        let site = "tokyo".parse()?;
        let gateway = Registration {
            role: Role::Gateway,
            name: ServerName::new("g1")?,
            site: Some(site),
            zone: None,
            // Nobody listens there, and nobody asks.
            http: "http://127.0.0.1:1".to_owned(),
            s3: None,
            admin: "http://127.0.0.1:1".to_owned(),
            node: None,
        };
        let heartbeat = Duration::from_millis(self.client.register(&gateway).await?.heartbeat_ms);
        let client = self.client.clone();
        // A site that is not heard of holds nothing for search: should a heartbeat fail, the lookups will say so.
        tokio::spawn(async move {
            tokio::time::sleep(heartbeat).await;
            while client.register(&gateway).await.is_ok() {
                tokio::time::sleep(heartbeat).await;
            }
        });
        let provider: ClientId = "provider".parse()?;
        let new = NewClient { client: provider.clone(), site: "tokyo".parse()? };
        self.client.create_client(&new).await?;
        for bucket in 0..=self.plan.contents / BUCKET_LEN {
            let new = NewBucket { provider: provider.clone(), visibility: Visibility::Public };
            self.client.put_bucket(&format!("bucket-{bucket}").parse()?, &new).await?;
        }
        Ok(())
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.pid.and_then(process::cpu_time)
    }

    /// All contents, by several nodes at the same time.
    async fn announce(&self) -> Result<Figures, SearchError> {
        let (begin, cpu) = (Instant::now(), self.cpu_time());
        let nodes = (0..self.plan.connections).map(|node| self.announce_as(node));
        let latency = merged(try_join_all(nodes).await?);
        Ok(self.figures(self.plan.contents, begin, cpu, &latency))
    }

    /// Every so-manieth content, in batches.
    async fn announce_as(&self, node: u64) -> Result<Latency, SearchError> {
        let provider = "provider".parse()?;
        let announcer = Announcer::Node(NodeId::new(&format!("tokyo.n{node}"))?);
        let (mut latency, mut first_seq) = (Latency::default(), 1);
        let mut numbers = (node..self.plan.contents).step_by(self.plan.connections as usize).peekable();
        while numbers.peek().is_some() {
            let piece = numbers.by_ref().take(self.plan.batch as usize);
            let items = piece.map(|number| hold(number, &provider)).collect::<Result<Vec<_>, _>>()?;
            let sent = items.len() as u64;
            let batch = AnnounceBatch { announcer: announcer.clone(), epoch: 1, first_seq, items };
            let begin = Instant::now();
            let taken = self.client.announce(&batch).await?.next_seq - first_seq;
            latency.record(begin.elapsed());
            if taken != sent {
                return Err(SearchError::NotTaken { taken, sent });
            }
            first_seq += sent;
        }
        Ok(latency)
    }

    /// Asks again and again over several connections.
    async fn ask(
        &self,
        question: impl AsyncFn(&SearchClient, u64) -> Result<(), SearchError>,
    ) -> Result<Figures, SearchError> {
        let (begin, cpu) = (Instant::now(), self.cpu_time());
        let one = async |connection: u64| {
            let (mut latency, mut count) = (Latency::default(), 0);
            while begin.elapsed() < self.plan.duration {
                let asked = Instant::now();
                question(&self.client, scattered(connection << 40 | count) >> 8).await?;
                latency.record(asked.elapsed());
                count += 1;
            }
            Ok::<_, SearchError>((latency, count))
        };
        let answers = try_join_all((0..self.plan.connections).map(one)).await?;
        let count = answers.iter().map(|(_, count)| count).sum();
        let latency = merged(answers.into_iter().map(|(latency, _)| latency).collect());
        Ok(self.figures(count, begin, cpu, &latency))
    }

    async fn findable(&self) -> Result<Figures, SearchError> {
        let provider = "provider".parse()?;
        let announcer = Announcer::Node("tokyo.n-single".parse()?);
        let (begin, cpu) = (Instant::now(), self.cpu_time());
        let (mut latency, mut count) = (Latency::default(), 0);
        while begin.elapsed() < self.plan.duration {
            let number = self.plan.contents + count;
            let items = vec![hold(number, &provider)?];
            let batch = AnnounceBatch { announcer: announcer.clone(), epoch: 1, first_seq: count + 1, items };
            let announced = Instant::now();
            self.client.announce(&batch).await?;
            self.client.lookup(&name(number)?).await?;
            latency.record(announced.elapsed());
            count += 1;
        }
        Ok(self.figures(count, begin, cpu, &latency))
    }

    fn figures(&self, count: u64, begin: Instant, cpu: Option<Duration>, latency: &Latency) -> Figures {
        let used = self.cpu_time().zip(cpu).map(|(now, before)| now.saturating_sub(before));
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        Figures {
            count,
            per_s: count as f64 / begin.elapsed().as_secs_f64(),
            cpu_us: used.map(|used| micros(used) / count.max(1) as f64),
            p50_us: micros(latency.at(0.5)),
            p99_us: micros(latency.at(0.99)),
        }
    }
}

fn merged(all: Vec<Latency>) -> Latency {
    let mut sum = Latency::default();
    all.iter().for_each(|one| sum.merge(one));
    sum
}

fn spawn(plan: &SearchPlan) -> Result<(String, ClusterSecret, Option<Started>), SearchError> {
    let failed = |source| SearchError::Spawn { path: plan.dozo.clone(), source };
    let secret = ClusterSecret::new(SECRET).map_err(|e| failed(std::io::Error::other(e)))?;
    let folder = std::env::temp_dir().join(format!("dozo-bench-search-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let address = free.map_err(failed)?.to_string();
    let mut command = Command::new(&plan.dozo);
    command.args(["search", "--listen", &address, "--data-dir"]).arg(&folder);
    if let Some(url) = &plan.database {
        command.args(["--database", url]);
    }
    let child = command.env("DOZO__CLUSTER__SECRET", SECRET).stdout(Stdio::null()).spawn().map_err(failed)?;
    Ok((format!("http://{address}"), secret, Some(Started { child, folder })))
}

/// For people.
pub fn show(result: &SearchResult) -> String {
    let mut text = format!("{} contents\n", result.contents);
    let lines = [
        ("announcements", &result.announcements),
        ("lookups", &result.lookups),
        ("listings of 100", &result.listings),
        ("1,000 common prefixes", &result.prefixes),
        ("parts of names", &result.finds),
        ("announced to findable", &result.findable),
    ];
    for (what, Figures { per_s, cpu_us, p50_us, p99_us, .. }) in lines {
        let cpu = cpu_us.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.0} µs"));
        text.push_str(&format!(
            "{what:<22} {per_s:>9.0} /s   CPU {cpu:>8}   p50 {:>8.2} ms   p99 {:>8.2} ms\n",
            p50_us / 1e3,
            p99_us / 1e3
        ));
    }
    text
}
