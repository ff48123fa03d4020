//! The connections of one worker: to a gateway of its site, and what operations across sites need beside it.
//!
//! Such operations need something made before them: a content at another site, a visit. Both are made ready between two
//! operations, by [`Lines::make_ready`], so that no operation's time has them in it. What cannot be made ready is told
//! when it is needed, as the failure of that operation.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::api::mobile_access::AccessClient;
use common::client::HttpClient;

use super::Publications;
use crate::content::Content;
use crate::plan::{Op, Plan};
use crate::protocol::{Client, Protocol, Stored};
use crate::target::{Provider, Roaming, Target, bucket_of, resolve};
use crate::visit::Pass;
use crate::wire::WireError;

/// A visit that could not be opened is tried again after this.
const VISIT_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A content that was just published, and what its PUT was answered.
pub struct Published {
    pub key: String,
    pub content: Content,
    pub stored: Stored,
}

pub struct Lines {
    home: Client,
    collector: Option<Collector>,
    visitor: Option<Visitor>,
}

impl Lines {
    /// `worker` connects to `address`, and to the provider's gateway with the like number. Only what the plan needs is
    /// there.
    pub fn new(
        plan: &Plan,
        target: &Target,
        worker: u64,
        (address, host): (SocketAddr, &str),
        provider: Option<(SocketAddr, &str)>,
    ) -> Self {
        let ops = plan.ops();
        let collector = target.provider.as_ref().zip(provider).filter(|_| ops.contains(&Op::Collect));
        let roaming = target.roaming.as_ref().filter(|_| ops.contains(&Op::Roam));
        Self {
            home: Client::new(&target.protocol, address, host),
            collector: collector.map(|(provider, at)| {
                Collector::new(provider, at, &target.protocol, (address, host), worker)
            }),
            visitor: roaming.map(|roaming| Visitor::new(roaming, &target.client, worker)),
        }
    }

    pub fn home(&mut self) -> &mut Client {
        &mut self.home
    }

    /// The connection that requests of this kind go over.
    pub fn of(&mut self, op: Op) -> Result<&mut Client, WireError> {
        match op {
            Op::Collect => self.collector.as_mut().map(|collector| &mut collector.reader).ok_or_else(unready),
            Op::Roam => self.visitor.as_mut().ok_or_else(unready)?.line(),
            _ => Ok(&mut self.home),
        }
    }

    /// Makes ready what the next operations may need and is not there; answers with what was published, if it was.
    pub async fn make_ready(&mut self, plan: &Plan) -> Option<Published> {
        if let Some(visitor) = &mut self.visitor {
            visitor.visit(plan.request_time_max).await;
        }
        self.collector.as_mut()?.publish(plan).await
    }

    /// Takes the content that is there to be collected: its number.
    pub fn take_published(&mut self) -> Result<u64, WireError> {
        let in_hand = self.collector.as_mut().and_then(|collector| collector.in_hand.take());
        in_hand.unwrap_or_else(|| Err(unready()))
    }

    pub fn publications(&self) -> Option<Publications> {
        let Collector { worker, count, .. } = self.collector.as_ref()?;
        Some(Publications { worker: *worker, count: *count })
    }
}

fn unready() -> WireError {
    WireError::Unready { code: "unready".to_owned() }
}

/// Has contents published at another site, one ahead, and reads them at its own.
struct Collector {
    worker: u64,
    publisher: Client,
    reader: Client,
    /// Contents that were published, or may have been.
    count: u64,
    /// The number of the content that is to be collected next, or why there is none.
    in_hand: Option<Result<u64, WireError>>,
}

impl Collector {
    fn new(
        provider: &Provider,
        (there, host_there): (SocketAddr, &str),
        protocol: &Protocol,
        (here, host_here): (SocketAddr, &str),
        worker: u64,
    ) -> Self {
        Self {
            worker,
            publisher: Client::new(&provider.protocol(), there, host_there),
            reader: Client::new(&provider.protocol_for(protocol), here, host_here),
            count: 0,
            in_hand: None,
        }
    }

    async fn publish(&mut self, plan: &Plan) -> Option<Published> {
        if self.in_hand.is_some() {
            return None;
        }
        let nth = self.count;
        self.count += 1;
        let (key, content) = plan.published(self.worker, nth);
        let limit = plan.request_time_max;
        let put = tokio::time::timeout(limit, self.publisher.put(&key, content)).await;
        match put.unwrap_or(Err(WireError::Timeout(limit))) {
            Ok(stored) => {
                self.in_hand = Some(Ok(nth));
                Some(Published { key, content, stored })
            }
            Err(error) => {
                self.publisher.close();
                self.in_hand = Some(Err(WireError::Unready { code: error.code().to_owned() }));
                None
            }
        }
    }
}

/// Visits another site, anew before a visit runs out.
struct Visitor {
    roaming: Roaming,
    access: AccessClient,
    bucket: String,
    worker: u64,
    /// To a gateway of the visited site, or why there is none.
    line: Result<Client, String>,
    renew_at: Instant,
}

impl Visitor {
    fn new(roaming: &Roaming, client: &str, worker: u64) -> Self {
        Self {
            roaming: roaming.clone(),
            access: AccessClient::new(HttpClient::new(), &roaming.mobile_access),
            bucket: bucket_of(client),
            worker,
            line: Err("unready".to_owned()),
            renew_at: Instant::now(),
        }
    }

    fn line(&mut self) -> Result<&mut Client, WireError> {
        self.line.as_mut().map_err(|code| WireError::Unready { code: code.clone() })
    }

    /// Opens a visit if there is none, or if it is time for another.
    async fn visit(&mut self, limit: Duration) {
        if Instant::now() < self.renew_at {
            return;
        }
        let opened = tokio::time::timeout(limit, self.open()).await;
        match opened.unwrap_or_else(|_| Err("timeout".to_owned())) {
            Ok((line, renew_at)) => (self.line, self.renew_at) = (Ok(line), renew_at),
            Err(code) => {
                self.renew_at = Instant::now() + VISIT_AGAIN_AFTER;
                // A visit that cannot be renewed is still good for a while.
                if self.line.is_err() {
                    self.line = Err(code);
                }
            }
        }
    }

    /// The line and when it is to be renewed, or the code of what failed.
    async fn open(&self) -> Result<(Client, Instant), String> {
        let pass = Pass::open(&self.access, &self.roaming.card, self.worker).await;
        let pass = pass.map_err(|error| error.code())?;
        let (address, host) = resolve(&pass.gateway.http).await.map_err(|_| "address".to_owned())?;
        let renew_at = pass.renew_at;
        Ok((Client::visiting(pass, address, &host, &self.bucket), renew_at))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::plan::{Pace, Verify};
    use crate::testing::mobile_access;
    use crate::visit::Card;
    use crate::workload::{Mix, Size, Workload};

    fn plan(mix: Mix) -> Plan {
        Plan {
            workload: Workload { mix, ..Workload::gets(Size::list(&[2]), 10) },
            trace: None,
            connections: 1,
            threads: 1,
            pace: Pace::Closed,
            in_flight_max: 1,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(1),
            request_time_max: Duration::from_secs(5),
            verify: Verify::Full,
            seed: 1,
        }
    }

    #[tokio::test]
    async fn a_visit_is_renewed_before_it_runs_out() {
        let (url, opened) = mobile_access("osaka", "tokyo", Duration::from_millis(300)).await;
        let roaming = Roaming { mobile_access: url.clone(), card: Card::of("carol", "osaka") };
        let target = Target { roaming: Some(roaming), ..Target::at(&url, "carol", "token") };
        let plan = plan(Mix::of([(Op::Roam, 1.0)]));
        let at = resolve(&url).await.unwrap();
        let mut lines = Lines::new(&plan, &target, 0, (at.0, &at.1), None);
        assert!(lines.of(Op::Roam).is_err_and(|error| !error.is_unanswered()), "there is none yet");
        lines.make_ready(&plan).await;
        lines.make_ready(&plan).await;
        assert!(lines.of(Op::Roam).is_ok());
        assert_eq!(opened.load(Ordering::Relaxed), 1, "one is enough until it is time for another");
        let renew_at = lines.visitor.as_ref().unwrap().renew_at;
        tokio::time::sleep_until(renew_at.into()).await;
        lines.make_ready(&plan).await;
        assert_eq!(opened.load(Ordering::Relaxed), 2);
        assert!(lines.visitor.as_ref().unwrap().renew_at > renew_at);
    }

    #[tokio::test]
    async fn what_cannot_be_published_is_told_by_the_collect_that_needed_it_and_tried_again_for_the_next() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            r#"{{"search": {{"http": "http://{nobody}", "admin": "http://{nobody}"}}, "admin_token": "t",
                "sites": [{{"name": "tokyo", "gateways": [{{"http": "http://{nobody}", "admin": ""}}], "nodes": []}},
                    {{"name": "osaka", "gateways": [{{"http": "http://{nobody}", "admin": ""}}], "nodes": []}}],
                "clients": [{{"name": "bob", "site": "tokyo", "token": "b"}},
                    {{"name": "carol", "site": "osaka", "token": "c"}}]}}"#
        );
        let target = Target::of(&serde_json::from_str(&text).unwrap(), "bob").unwrap();
        let plan = plan(Mix::of([(Op::Collect, 1.0)]));
        let at = (nobody, "host");
        let mut lines = Lines::new(&plan, &target, 3, at, Some(at));
        for attempt in 1..=3 {
            assert!(lines.make_ready(&plan).await.is_none());
            assert!(lines.make_ready(&plan).await.is_none(), "it is told before it is tried again");
            assert_eq!(lines.publications(), Some(Publications { worker: 3, count: attempt }));
            let error = lines.take_published().unwrap_err();
            assert_eq!((error.code(), error.is_unanswered()), ("connect", false), "{error}");
        }
        assert!(lines.of(Op::Roam).is_err() && lines.of(Op::Get).is_ok());
    }
}
