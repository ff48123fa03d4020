//! The gateway's view of its site: the newest cluster map, and calls to the node that owns a slot.
//!
//! The map is long-polled from search. While search is down the last one stays in use, and a gateway that
//! starts then asks the storage nodes it is told of by [`SiteView::adopt`]. Of a node that does not answer
//! search is told, so that another serves in its place long before its lease runs out.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::api::node::NodeClient;
use common::api::search::SearchClient;
use common::backoff::Backoff;
use common::client::{CallError, ServerClient};
use common::cluster::{ClusterMap, MapEpoch, SiteEntry};
use common::error::{ApiError, ErrorCode};
use common::hash::ChunkHash;
use common::id::{NodeId, SiteId};
use common::placement::{SLOT_COUNT, Slot, rank_for_chunk};
use common::server::Health;
use common::trace;
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::metrics::Metrics;

const MAP_WAIT: Duration = Duration::from_secs(20);
/// A node is suspected once in this time at most, however many requests it does not answer.
const SUSPICION_PAUSE: Duration = Duration::from_millis(300);
/// A call that takes longer than this may be to a node that hangs; search looks.
const SLOW_CALL: Duration = Duration::from_secs(1);

/// Who serves a shard.
pub struct Primary {
    pub shard: NodeId,
    /// The node that does; another one than the shard's own while that is away.
    pub node: NodeId,
    pub client: NodeClient,
}

pub struct SiteView {
    pub id: SiteId,
    view: watch::Sender<View>,
    server: ServerClient,
    search: SearchClient,
    patience: Duration,
    /// When each node was last suspected.
    suspected: Mutex<HashMap<NodeId, Instant>>,
    metrics: Arc<Metrics>,
}

/// A map, and clients of the site's nodes made ready for use, in the map's order.
#[derive(Default)]
struct View {
    map: Arc<ClusterMap>,
    nodes: Vec<NodeClient>,
}

/// Where a chunk may be.
#[derive(Default)]
pub struct Places {
    /// How many copies the site keeps.
    pub copies: usize,
    /// Best first.
    pub nodes: Vec<Place>,
}

/// A node as a place for a chunk.
pub struct Place {
    pub id: NodeId,
    pub client: NodeClient,
    pub alive: bool,
    pub takes_writes: bool,
    /// It is to have the chunk.
    pub is_right: bool,
}

impl SiteView {
    pub fn new(
        id: SiteId,
        server: ServerClient,
        search: SearchClient,
        patience: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let view = watch::Sender::new(View::default());
        Self { id, view, server, search, patience, suspected: Mutex::default(), metrics }
    }

    pub fn map(&self) -> Arc<ClusterMap> {
        self.view.borrow().map.clone()
    }

    /// Takes a map if it is newer than the one in use. False for one that does not take account of that: the nodes
    /// do not take it either. (As long as the gateway knows of no node, any map is better.)
    pub fn adopt(&self, map: ClusterMap) -> bool {
        let (epoch, mut follows) = (map.epoch, true);
        let newer = self.view.send_if_modified(|current| {
            follows =
                current.nodes.is_empty() || epoch <= current.map.epoch || map.follows(&current.map.id());
            let newer = follows && epoch > current.map.epoch;
            if newer {
                let site = map.site(&self.id);
                site.inspect(|site| self.metrics.nodes.show(site));
                let nodes = site.map_or(&[][..], |site| &site.nodes);
                let nodes = nodes.iter().map(|n| NodeClient::new(self.server.clone(), &n.http)).collect();
                *current = View { map: Arc::new(map), nodes };
            }
            newer
        });
        if newer {
            self.metrics.map_epoch.set(epoch.0 as f64);
        }
        follows
    }

    /// Follows search's map for ever.
    pub async fn follow(self: Arc<Self>, health: Health) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let epoch = self.view.borrow().map.epoch;
            let wait = if epoch == MapEpoch::default() { Duration::ZERO } else { MAP_WAIT };
            match self.search.map(epoch, wait).await {
                Ok(map) => {
                    let offered = map.epoch;
                    if !self.adopt(map) {
                        tracing::error!(
                            offered = offered.0,
                            kept = epoch.0,
                            "search gives a map that does not follow from the one in use, which is kept until search \
                             has taken it over from the nodes (`/readyz?verbose` of search says what that waits for)"
                        );
                        tokio::time::sleep(backoff.next_delay()).await;
                        continue;
                    }
                    backoff.reset();
                    let has_nodes =
                        self.view.borrow().map.site(&self.id).is_some_and(|s| !s.slot_owners.is_empty());
                    let state =
                        if has_nodes { Ok(()) } else { Err("the site has no storage node yet".to_owned()) };
                    if state.is_err() {
                        // The map changes when the first node joins; ask for that change, not in a loop.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    health.set("map", state);
                    health.set("nodes", self.some_node_is_there());
                }
                Err(error) => {
                    tracing::warn!(error = %common::error::chain(&error), "search gives no map; the last one stays in use");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    fn some_node_is_there(&self) -> Result<(), String> {
        match self.nodes().is_empty() {
            true => Err("no storage node of the site is there".to_owned()),
            false => Ok(()),
        }
    }

    /// What `take` finds with the site and its node clients; `None` while there is no map.
    fn with_site<T>(&self, take: impl FnOnce(&SiteEntry, &[NodeClient]) -> T) -> Option<T> {
        let view = self.view.borrow();
        view.map.site(&self.id).map(|site| take(site, &view.nodes))
    }

    /// The site's nodes as places for a chunk, best first.
    pub fn places(&self, hash: &ChunkHash) -> Places {
        let rank = |site: &SiteEntry, clients: &[NodeClient]| {
            let copies = usize::from(site.replicas);
            let mut wanted = copies;
            let place = |index: usize| {
                let (entry, client) = (&site.nodes[index], clients[index].clone());
                let is_right = entry.weight > 0 && wanted > 0;
                wanted -= usize::from(is_right);
                let (alive, takes_writes) = (entry.alive, entry.takes_writes());
                Place { id: entry.id.clone(), client, alive, takes_writes, is_right }
            };
            Places { copies, nodes: rank_for_chunk(site, hash).into_iter().map(place).collect() }
        };
        self.with_site(rank).unwrap_or_default()
    }

    /// The site's nodes that are there.
    pub fn nodes(&self) -> Vec<(NodeId, NodeClient)> {
        let all = |site: &SiteEntry, clients: &[NodeClient]| {
            let there = site.nodes.iter().zip(clients).filter(|(node, _)| node.alive);
            there.map(|(node, client)| (node.id.clone(), client.clone())).collect::<Vec<_>>()
        };
        self.with_site(all).unwrap_or_default()
    }

    /// Who serves a node's shard.
    pub fn shard_primary(&self, shard: &NodeId) -> Option<Primary> {
        let find = |site: &SiteEntry, clients: &[NodeClient]| {
            let index = site.primary_index(site.node(shard)?)?;
            let (node, client) = (site.nodes[index].id.clone(), clients[index].clone());
            Some(Primary { shard: shard.clone(), node, client })
        };
        self.with_site(find).flatten()
    }

    /// Who serves the shard that has a slot, as far as this gateway knows.
    pub fn slot_primary(&self, slot: Slot) -> Option<Primary> {
        let find = |site: &SiteEntry, clients: &[NodeClient]| {
            let shard = site.slot_owner(slot)?;
            let index = site.primary_index(shard)?;
            let (node, client) = (site.nodes[index].id.clone(), clients[index].clone());
            Some(Primary { shard: shard.id.clone(), node, client })
        };
        self.with_site(find).flatten()
    }

    /// Who serves the shard that has both slots, if one has.
    pub fn primary_of_both(&self, a: Slot, b: Slot) -> Option<Primary> {
        let primary = self.slot_primary(a)?;
        self.slot_primary(b).filter(|other| other.shard == primary.shard).map(|_| primary)
    }

    /// Has search look whether a node is there that this gateway could not reach; does not wait for the
    /// outcome, which comes with the map. At most one report per node is on its way in 300 ms.
    pub fn suspect(&self, node: &NodeId) {
        if is_down(&self.view.borrow().map, node) {
            return;
        }
        let now = Instant::now();
        let mut suspected = self.suspected.lock().unwrap_or_else(PoisonError::into_inner);
        if suspected.get(node).is_some_and(|last| now.duration_since(*last) < SUSPICION_PAUSE) {
            return;
        }
        suspected.insert(node.clone(), now);
        drop(suspected);
        let (search, node) = (self.search.clone(), node.clone());
        trace::spawn(async move {
            match search.suspect(&node).await {
                Ok(answer) => tracing::debug!(%node, alive = answer.alive, "a node was suspected"),
                Err(error) => {
                    let error = common::error::chain(&error);
                    tracing::debug!(%node, error, "search takes no suspicion");
                }
            }
        });
    }

    /// Calls the owners of all slots, each with those that it owns; again, for what is left, while slots move or an owner
    /// does not answer, for at most the configured patience. The answers are of all slots, each once.
    pub async fn ask_all_owners<A, F>(
        &self,
        call: impl Fn(NodeClient, Vec<Slot>) -> F,
    ) -> Result<Vec<A>, ApiError>
    where
        F: Future<Output = Result<A, CallError>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(300));
        let (mut left, mut answers): (Vec<Slot>, _) = ((0..SLOT_COUNT).map(Slot).collect(), Vec::new());
        loop {
            let mut owners: BTreeMap<NodeId, (NodeClient, Vec<Slot>)> = BTreeMap::new();
            for slot in left.drain(..) {
                let primary = self.slot_primary(slot).ok_or_else(|| self.no_node())?;
                owners.entry(primary.node).or_insert_with(|| (primary.client, Vec::new())).1.push(slot);
            }
            let asked = owners.into_iter().map(|(node, (owner, slots))| {
                let asked = call(owner.clone(), slots.clone());
                async move { (self.unless_down(&node, owner.base(), asked).await, node, owner, slots) }
            });
            let mut failed = None;
            for (answer, node, owner, slots) in join_all(asked).await {
                match answer {
                    Ok(answer) => answers.push(answer),
                    Err(error) => {
                        left.extend(slots);
                        failed = Some((error, node, owner));
                    }
                }
            }
            let Some((error, node, owner)) = failed else { return Ok(answers) };
            self.wait_to_ask_again(&error, &node, &owner, deadline, &mut backoff).await?;
        }
    }

    /// Calls the owner of a slot, again while the slot moves or its owner does not answer, for at most the
    /// configured patience. `call` must be safe to repeat.
    pub async fn ask_owner<A, F>(&self, slot: Slot, call: impl Fn(NodeClient) -> F) -> Result<A, ApiError>
    where
        F: Future<Output = Result<A, CallError>>,
    {
        self.ask_owner_counting(slot, call).await.map(|(answer, _)| answer)
    }

    /// [`SiteView::ask_owner`] that also answers how often it asked, not counting refusals that change nothing.
    /// After the first time, what was asked for may have been done already: an answer that tells of a change is
    /// not the whole truth then.
    pub async fn ask_owner_counting<A, F>(
        &self,
        slot: Slot,
        call: impl Fn(NodeClient) -> F,
    ) -> Result<(A, u32), ApiError>
    where
        F: Future<Output = Result<A, CallError>>,
    {
        let mut asked = 0;
        let deadline = Instant::now() + self.patience;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(300));
        loop {
            let Primary { node, client, .. } = self.slot_primary(slot).ok_or_else(|| self.no_node())?;
            match self.unless_down(&node, client.base(), call(client.clone())).await {
                Ok(answer) => return Ok((answer, asked + 1)),
                Err(error) => {
                    asked += u32::from(error.code() != Some(ErrorCode::SlotMoving));
                    self.wait_to_ask_again(&error, &node, &client, deadline, &mut backoff).await?;
                }
            }
        }
    }

    fn no_node(&self) -> ApiError {
        ApiError::new(
            ErrorCode::NodeUnavailable,
            format!("site {} has no storage node yet; start one and try again", self.id),
        )
    }

    /// Waits a moment, and for a newer map if the node has one; the error once that is of no use any more.
    async fn wait_to_ask_again(
        &self,
        error: &CallError,
        node: &NodeId,
        client: &NodeClient,
        deadline: Instant,
        backoff: &mut Backoff,
    ) -> Result<(), ApiError> {
        if !error.is_retryable() || Instant::now() >= deadline {
            return Err(error.to_api(
                ErrorCode::NodeUnavailable,
                "the storage node for this request does not answer; try again in a moment",
            ));
        }
        self.metrics.node_retries.increment(1);
        match error {
            CallError::Unreachable { .. } | CallError::Timeout { .. } => self.suspect(node),
            _ if error.code() == Some(ErrorCode::WrongNode) => self.exchange_maps(client).await,
            _ => {}
        }
        tokio::time::sleep(backoff.next_delay()).await;
        Ok(())
    }

    /// The node knows a newer map than we do, or an older one, also while search is down; then both have the newer.
    async fn exchange_maps(&self, node: &NodeClient) {
        let Ok(theirs) = node.map().await else { return };
        let ours = self.map();
        if theirs.epoch >= ours.epoch {
            self.adopt(theirs);
        } else if let Err(error) = node.hand_on_map(&ours).await {
            tracing::debug!(error = %common::error::chain(&error), "the node does not take the map");
        }
    }

    /// The outcome of a call to a node. Once it is slow the node is suspected, and if search then finds that
    /// the node is down the call is given up.
    pub async fn unless_down<A>(
        &self,
        node: &NodeId,
        url: &str,
        call: impl Future<Output = Result<A, CallError>>,
    ) -> Result<A, CallError> {
        let (begun, mut call) = (Instant::now(), pin!(call));
        if let Ok(outcome) = tokio::time::timeout(SLOW_CALL, &mut call).await {
            return outcome;
        }
        self.suspect(node);
        let mut views = self.view.subscribe();
        tokio::select! {
            outcome = &mut call => outcome,
            _ = views.wait_for(|view| is_down(&view.map, node)) => {
                Err(CallError::Timeout { url: url.to_owned(), limit: begun.elapsed() })
            }
        }
    }
}

/// Whether search found a node to be down.
fn is_down(map: &ClusterMap, node: &NodeId) -> bool {
    let entry = map.sites.iter().find_map(|site| site.node(node));
    entry.is_some_and(|entry| !entry.alive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::State;
    use axum::routing::{get, post};
    use common::api::extract::ApiJson;
    use common::api::search::{Suspicion, SuspicionAnswer};
    use common::auth::ClusterSecret;
    use common::client::HttpClient;
    use common::cluster::{NodeEntry, NodeState, ShardEntry};
    use common::server::accept_loop;
    use common::telemetry::MetricsRegistry;
    use common::time::Clock;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    /// A site of two nodes; the first decides for every slot, as long as it is alive.
    fn map(epoch: u64, nodes: [&str; 2], first_alive: bool) -> ClusterMap {
        let mut site = SiteEntry::new(SiteId::new("tokyo").unwrap());
        for (index, http) in (0u16..).zip(nodes) {
            let (alive, first) = (index > 0 || first_alive, index == 0 && !first_alive);
            site.nodes.push(NodeEntry {
                id: NodeId::new(&format!("tokyo.n{}", index + 1)).unwrap(),
                http: http.to_owned(),
                admin: String::new(),
                state: NodeState::Active,
                alive,
                weight: 1,
                capacity_bytes: 1,
                shard: ShardEntry { term: 1, primary: if first { 1 } else { index }, followers: Vec::new() },
            });
        }
        site.slot_owners = vec![0; usize::from(SLOT_COUNT)];
        ClusterMap { epoch: MapEpoch(epoch), sites: vec![site], ..ClusterMap::default() }
    }

    /// A view whose search passes on who is suspected.
    async fn view_of(nodes: [&str; 2]) -> (Arc<SiteView>, mpsc::UnboundedReceiver<NodeId>) {
        type Suspicions = State<mpsc::UnboundedSender<NodeId>>;
        let (tell, told) = mpsc::unbounded_channel();
        let take = async |State(tell): Suspicions, ApiJson(Suspicion { node }): ApiJson<Suspicion>| {
            tell.send(node).unwrap();
            ApiJson(SuspicionAnswer { alive: false })
        };
        let (search, url) = listener().await;
        let routes = Router::new().route("/v1/nodes/suspect", post(take)).with_state(tell);
        tokio::spawn(accept_loop(search, routes, CancellationToken::new()));
        let secret = ClusterSecret::new("a cluster secret for tests, long enough").unwrap();
        let server = ServerClient::new(HttpClient::new(), secret, "test", Clock::System);
        let metrics = Arc::new(Metrics::new(&MetricsRegistry::new()));
        let search = SearchClient::new(server.clone(), &url);
        let id = SiteId::new("tokyo").unwrap();
        let view = Arc::new(SiteView::new(id, server, search, Duration::from_secs(60), metrics));
        view.adopt(map(1, nodes, true));
        (view, told)
    }

    async fn answering() -> String {
        let (node, url) = listener().await;
        let routes = Router::new().route("/v1/map", get(async || ApiJson(map(7, ["a", "b"], true))));
        tokio::spawn(accept_loop(node, routes, CancellationToken::new()));
        url
    }

    async fn ask(view: Arc<SiteView>) -> Result<MapEpoch, ApiError> {
        view.ask_owner(Slot(3), async |node: NodeClient| Ok(node.map().await?.epoch)).await
    }

    #[tokio::test]
    async fn a_node_that_is_gone_is_suspected_once_in_a_while_and_its_successor_asked() {
        let (gone, gone_url) = listener().await;
        drop(gone);
        let there = answering().await;
        let (view, mut told) = view_of([&gone_url, &there]).await;
        let begun = Instant::now();
        let asking: Vec<_> = (0..20).map(|_| tokio::spawn(ask(view.clone()))).collect();
        for _ in 0..3 {
            assert_eq!(told.recv().await.unwrap().as_str(), "tokyo.n1");
        }
        assert!(begun.elapsed() >= 2 * SUSPICION_PAUSE, "twenty requests make one report at a time");
        view.adopt(map(2, [&gone_url, &there], false));
        for asked in asking {
            assert_eq!(asked.await.unwrap().unwrap(), MapEpoch(7));
        }
    }

    #[tokio::test]
    async fn a_call_to_a_node_that_hangs_is_given_up_when_the_map_says_that_it_is_down() {
        let (_hung, hung_url) = listener().await;
        let there = answering().await;
        let (view, mut told) = view_of([&hung_url, &there]).await;
        let begun = Instant::now();
        let asking = tokio::spawn(ask(view.clone()));
        assert_eq!(told.recv().await.unwrap().as_str(), "tokyo.n1");
        view.adopt(map(2, [&hung_url, &there], false));
        assert_eq!(asking.await.unwrap().unwrap(), MapEpoch(7));
        assert!(begun.elapsed() < Duration::from_secs(10), "long before the call's own limit");
    }
}
