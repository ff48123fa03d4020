//! Replaying a trace: who sends what over which links.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::traffic::topology::{Route, SiteIndex, Topology};
use crate::traffic::trace::{ClientIndex, Content, ContentIndex, Request, Trace};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    ClientServer,
    PeerToPeer,
    Sites,
}

impl Model {
    pub const ALL: [Self; 3] = [Self::ClientServer, Self::PeerToPeer, Self::Sites];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientServer => "client-server",
            Self::PeerToPeer => "peer-to-peer",
            Self::Sites => "sites",
        }
    }
}

/// What may be decided apart from the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rules {
    /// Sites collect only the bytes of a content that they do not have from others of its family.
    pub dedup: bool,
}

/// What a model did to the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub model: Model,
    pub requests: u64,
    /// Bytes that clients got.
    pub delivered_bytes: u64,
    pub byte_hops: u64,
    /// Bytes that the server or origin sent.
    pub origin_bytes: u64,
    /// Bytes that went from site to site, or from client to client.
    pub peer_bytes: u64,
    /// Bytes over each link of the topology, both directions together.
    pub link_bytes: Vec<u64>,
    /// Bytes over the clients' access links; a byte from client to client crosses two.
    pub access_bytes: u64,
    /// Requests that needed nobody else: the client's own machine, or its home site, had the content.
    pub local: u64,
    pub from_peer: u64,
    pub from_origin: u64,
    /// Requests for which clients had the content, and none of them was running.
    pub no_running_holder: u64,
    /// Bytes that were not collected because the site had their like.
    pub saved_bytes: u64,
}

impl Outcome {
    fn new(model: Model, topology: &Topology) -> Self {
        Self {
            model,
            requests: 0,
            delivered_bytes: 0,
            byte_hops: 0,
            origin_bytes: 0,
            peer_bytes: 0,
            link_bytes: vec![0; topology.links.len()],
            access_bytes: 0,
            local: 0,
            from_peer: 0,
            from_origin: 0,
            no_running_holder: 0,
            saved_bytes: 0,
        }
    }

    fn over(&mut self, route: &Route, bytes: u64) {
        self.byte_hops += bytes * u64::from(route.hops);
        for link in &route.links {
            self.link_bytes[*link] += bytes;
        }
    }

    fn over_access(&mut self, topology: &Topology, bytes: u64) {
        self.byte_hops += bytes * u64::from(topology.access_hops);
        self.access_bytes += bytes;
    }

    /// Mean number of hops of a delivered byte.
    pub fn hops_per_byte(&self) -> f64 {
        if self.delivered_bytes == 0 { 0.0 } else { self.byte_hops as f64 / self.delivered_bytes as f64 }
    }
}

/// Replays the trace.
pub fn replay(model: Model, rules: Rules, trace: &Trace, topology: &Topology) -> Outcome {
    let mut outcome = Outcome::new(model, topology);
    let mut clients = ClientHoldings::default();
    let mut sites = SiteHoldings { dedup: rules.dedup, ..SiteHoldings::default() };
    for request in &trace.requests {
        let content = trace.contents[request.content];
        let home = trace.clients[request.client].home;
        outcome.requests += 1;
        outcome.delivered_bytes += content.len;
        match model {
            Model::ClientServer => {
                outcome.from_origin += 1;
                outcome.origin_bytes += content.len;
                outcome.over(topology.from_origin(home), content.len);
                outcome.over_access(topology, content.len);
            }
            Model::PeerToPeer => clients.serve(&mut outcome, request, content, trace, topology),
            Model::Sites => {
                sites.serve(&mut outcome, request.content, content, home, topology);
                outcome.over_access(topology, content.len);
            }
        }
    }
    outcome
}

/// What clients have on their own machines.
#[derive(Default)]
struct ClientHoldings {
    has: HashSet<(ClientIndex, ContentIndex)>,
    /// Clients that have a content, by site.
    at: HashMap<(ContentIndex, SiteIndex), Vec<ClientIndex>>,
    /// Contents that somebody has.
    known: HashSet<ContentIndex>,
}

impl ClientHoldings {
    fn serve(
        &mut self,
        outcome: &mut Outcome,
        request: &Request,
        content: Content,
        trace: &Trace,
        topology: &Topology,
    ) {
        let home = trace.clients[request.client].home;
        if !self.has.insert((request.client, request.content)) {
            outcome.local += 1;
            return;
        }
        if let Some(site) = self.nearest_running(request, trace, topology) {
            outcome.from_peer += 1;
            outcome.peer_bytes += content.len;
            outcome.over_access(topology, content.len);
            outcome.over(topology.between(site, home), content.len);
        } else {
            outcome.no_running_holder += u64::from(self.known.contains(&request.content));
            outcome.from_origin += 1;
            outcome.origin_bytes += content.len;
            outcome.over(topology.from_origin(home), content.len);
        }
        outcome.over_access(topology, content.len);
        self.known.insert(request.content);
        self.at.entry((request.content, home)).or_default().push(request.client);
    }

    /// The site of the nearest client that has the content and runs.
    fn nearest_running(&self, request: &Request, trace: &Trace, topology: &Topology) -> Option<SiteIndex> {
        if !self.known.contains(&request.content) {
            return None;
        }
        let home = trace.clients[request.client].home;
        let is_on = |client: &ClientIndex| trace.clients[*client].is_on(request.at_ms);
        let runs = |site: &&SiteIndex| {
            self.at.get(&(request.content, **site)).is_some_and(|holders| holders.iter().any(is_on))
        };
        topology.nearest(home).iter().find(runs).copied()
    }
}

/// What sites hold.
#[derive(Default)]
struct SiteHoldings {
    dedup: bool,
    holds: HashSet<(SiteIndex, ContentIndex)>,
    /// Families of which a site has a content.
    families: HashSet<(SiteIndex, usize)>,
}

impl SiteHoldings {
    /// Has the content at its client's home site.
    fn serve(
        &mut self,
        outcome: &mut Outcome,
        index: ContentIndex,
        content: Content,
        home: SiteIndex,
        topology: &Topology,
    ) {
        if self.holds.contains(&(home, index)) {
            outcome.local += 1;
            return;
        }
        let has_like = !self.families.insert((home, content.family));
        let saved = if self.dedup && has_like { content.alike_len } else { 0 };
        let bytes = content.len - saved;
        outcome.saved_bytes += saved;
        match topology.nearest(home).iter().find(|site| self.holds.contains(&(**site, index))) {
            Some(site) => {
                outcome.from_peer += 1;
                outcome.peer_bytes += bytes;
                outcome.over(topology.between(*site, home), bytes);
            }
            None => {
                outcome.from_origin += 1;
                outcome.origin_bytes += bytes;
                outcome.over(topology.from_origin(home), bytes);
            }
        }
        self.holds.insert((home, index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::topology::{LinkEntry, SiteEntry, TopologyFile};
    use crate::traffic::trace::{Client, TraceParameters};
    use proptest::prelude::*;

    fn star(hops: &[u32], access_hops: u32) -> Topology {
        let name = |i: usize| format!("s{i}");
        let links = hops
            .iter()
            .enumerate()
            .map(|(i, hops)| LinkEntry { between: ["hub".to_owned(), name(i)], hops: *hops });
        let sites = (0..hops.len()).map(|i| SiteEntry { name: name(i), at: None, clients: 1 });
        let (links, sites) = (links.collect(), sites.collect());
        Topology::new(TopologyFile { origin: "hub".to_owned(), access_hops, links, sites }).unwrap()
    }

    /// Three clients, the first two of site 0, and requests by hand: (second, client, content).
    fn by_hand(on: [&[(u64, u64)]; 3], requests: &[(u64, usize, usize)]) -> Trace {
        let homes = [0, 0, 1];
        let client = |i: usize| Client { home: homes[i], on: on[i].to_vec() };
        let content = |i: usize| Content { len: 100, family: i % 2, alike_len: 30 };
        let request = |&(at_ms, client, content)| Request { at_ms, client, content };
        Trace {
            parameters: TraceParameters::default(),
            contents: (0..4).map(content).collect(),
            clients: (0..3).map(client).collect(),
            requests: requests.iter().map(request).collect(),
        }
    }

    #[test]
    fn a_story_told_by_hand_costs_what_it_must() {
        let topology = star(&[3, 5], 1);
        let always: &[(u64, u64)] = &[(0, 100)];
        // 0 gets it, is off when 1 asks, and runs again when 2 does.
        let trace =
            by_hand([&[(0, 10), (30, 100)], always, always], &[(1, 0, 0), (2, 0, 0), (20, 1, 0), (40, 2, 0)]);
        let run = |model| replay(model, Rules::default(), &trace, &topology);

        let server = run(Model::ClientServer);
        assert_eq!((server.byte_hops, server.origin_bytes), (3 * 400 + 600, 400));

        let peers = run(Model::PeerToPeer);
        assert_eq!((peers.local, peers.from_peer, peers.from_origin, peers.no_running_holder), (1, 1, 2, 1));
        assert_eq!(peers.byte_hops, 2 * 400 + 100 * (1 + 3 + 5 + 1));
        assert_eq!((peers.origin_bytes, peers.peer_bytes, peers.access_bytes), (200, 100, 400));

        let sites = run(Model::Sites);
        assert_eq!((sites.local, sites.from_peer, sites.from_origin, sites.no_running_holder), (2, 1, 1, 0));
        assert_eq!(sites.byte_hops, 100 * 3 + 100 * (3 + 5) + 400);
        assert_eq!(sites.link_bytes, [200, 100]);
    }

    #[test]
    fn a_site_that_has_the_like_collects_only_the_rest() {
        let topology = star(&[1, 1], 1);
        let always: &[(u64, u64)] = &[(0, 100)];
        let trace = by_hand([always; 3], &[(1, 0, 0), (2, 0, 2), (3, 1, 1), (4, 2, 2)]);
        let plain = replay(Model::Sites, Rules::default(), &trace, &topology);
        let dedup = replay(Model::Sites, Rules { dedup: true }, &trace, &topology);
        assert_eq!((plain.origin_bytes, plain.peer_bytes, plain.saved_bytes), (300, 100, 0));
        assert_eq!((dedup.origin_bytes, dedup.peer_bytes, dedup.saved_bytes), (270, 100, 30));
        assert_eq!(dedup.delivered_bytes, plain.delivered_bytes);
    }

    /// The peers' model once more, slow and obvious: every client is looked at for every request.
    fn obvious_peers(trace: &Trace, topology: &Topology) -> (u64, u64, u64) {
        let mut has: Vec<HashSet<ContentIndex>> = vec![HashSet::new(); trace.clients.len()];
        let (mut byte_hops, mut origin_bytes, mut failed) = (0, 0, 0);
        for request in &trace.requests {
            let (len, home) = (trace.contents[request.content].len, trace.clients[request.client].home);
            if has[request.client].contains(&request.content) {
                continue;
            }
            let holders = || trace.clients.iter().zip(&has).filter(|(_, has)| has.contains(&request.content));
            let running = holders().filter(|(client, _)| client.is_on(request.at_ms));
            let nearest = running.map(|(client, _)| topology.between(client.home, home).hops).min();
            let access = u64::from(topology.access_hops);
            byte_hops += len
                * match nearest {
                    Some(hops) => u64::from(hops) + 2 * access,
                    None => u64::from(topology.from_origin(home).hops) + access,
                };
            if nearest.is_none() {
                origin_bytes += len;
                failed += u64::from(holders().next().is_some());
            }
            has[request.client].insert(request.content);
        }
        (byte_hops, origin_bytes, failed)
    }

    fn parameters() -> impl Strategy<Value = TraceParameters> {
        (any::<u64>(), 1..40usize, 1..60usize, 0..400usize, 0.0..1.5f64, 0.05..1.0f64, 1..4usize).prop_map(
            |(seed, clients, contents, requests, zipf_alpha, availability, family)| TraceParameters {
                seed,
                clients,
                contents,
                requests,
                zipf_alpha,
                availability,
                family,
                alike: 0.4,
                duration_s: 86_400,
                ..TraceParameters::default()
            },
        )
    }

    proptest! {
        #[test]
        fn every_byte_is_accounted_for(parameters in parameters(), regions in 1..4usize, dedup: bool) {
            let topology = Topology::tree(regions, 3).unwrap();
            let trace = parameters.generate(&topology).unwrap();
            let asked: HashSet<ContentIndex> = trace.requests.iter().map(|request| request.content).collect();
            let once: u64 = asked.iter().map(|content| trace.contents[*content].len).sum();
            for model in Model::ALL {
                let outcome = replay(model, Rules { dedup }, &trace, &topology);
                let links = topology.links.iter().zip(&outcome.link_bytes);
                let over_links: u64 = links.map(|(link, bytes)| u64::from(link.hops) * bytes).sum();
                let over_access = u64::from(topology.access_hops) * outcome.access_bytes;
                prop_assert_eq!(outcome.byte_hops, over_links + over_access);
                prop_assert_eq!(outcome.delivered_bytes, trace.requested_bytes());
                prop_assert_eq!(outcome.requests, trace.requests.len() as u64);
                prop_assert_eq!(outcome.requests, outcome.local + outcome.from_peer + outcome.from_origin);
                match model {
                    Model::ClientServer => prop_assert_eq!(outcome.origin_bytes, trace.requested_bytes()),
                    Model::PeerToPeer => prop_assert!(outcome.origin_bytes >= once),
                    // Each content leaves the origin once, and what was saved of it not at all.
                    Model::Sites if dedup => prop_assert!(outcome.origin_bytes <= once),
                    Model::Sites => prop_assert_eq!(outcome.origin_bytes, once),
                }
                if model != Model::PeerToPeer {
                    prop_assert_eq!(outcome.no_running_holder, 0);
                }
            }
        }

        #[test]
        fn peers_are_found_as_by_looking_at_every_one(parameters in parameters(), regions in 1..4usize) {
            let topology = Topology::tree(regions, 3).unwrap();
            let trace = parameters.generate(&topology).unwrap();
            let outcome = replay(Model::PeerToPeer, Rules::default(), &trace, &topology);
            let found = (outcome.byte_hops, outcome.origin_bytes, outcome.no_running_holder);
            prop_assert_eq!(found, obvious_peers(&trace, &topology));
        }

        #[test]
        fn over_one_hop_the_server_costs_exactly_the_bytes(parameters in parameters()) {
            let topology = star(&[1, 1, 1], 0);
            let trace = parameters.generate(&topology).unwrap();
            let outcome = replay(Model::ClientServer, Rules::default(), &trace, &topology);
            prop_assert_eq!(outcome.byte_hops, trace.requested_bytes());
        }

        #[test]
        fn while_all_clients_run_none_is_missed(parameters in parameters()) {
            let parameters = TraceParameters { availability: 1.0, ..parameters };
            let topology = star(&[2, 3], 1);
            let trace = parameters.generate(&topology).unwrap();
            let outcome = replay(Model::PeerToPeer, Rules::default(), &trace, &topology);
            let sites = replay(Model::Sites, Rules::default(), &trace, &topology);
            prop_assert_eq!(outcome.no_running_holder, 0);
            prop_assert_eq!(outcome.origin_bytes, sites.origin_bytes);
        }
    }
}
