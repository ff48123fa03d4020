//! Where sites, clients and the origin are, and how far apart: a network of vertices and links with hop counts.
//!
//! A transfer takes the route with the fewest hops; where several have as few, always the same one. A link may stand
//! for several hops, as when it crosses another provider's routers. Each client is connected to its site's vertex by
//! an access link of its own.
//!
//! As TOML:
//! ```toml
//! origin = "exchange"        # the vertex that the origin (or the one server) is at
//! access_hops = 1            # between a client and its site
//!
//! [[links]]
//! between = ["exchange", "core"]
//! hops = 4
//!
//! [[links]]
//! between = ["core", "tokyo"]
//!
//! [[sites]]
//! name = "tokyo"             # at the vertex of this name unless `at` names another
//! clients = 60               # its share of the clients, in proportion to other sites'
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topology: {0}")]
pub struct InvalidTopology(String);

fn invalid<T>(reason: impl Into<String>) -> Result<T, InvalidTopology> {
    Err(InvalidTopology(reason.into()))
}

/// What a topology file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyFile {
    pub origin: String,
    #[serde(default = "one")]
    pub access_hops: u32,
    pub links: Vec<LinkEntry>,
    pub sites: Vec<SiteEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkEntry {
    pub between: [String; 2],
    #[serde(default = "one")]
    pub hops: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteEntry {
    pub name: String,
    /// Its vertex; the one of its name if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Share of the clients that are at home here, in proportion to other sites'.
    #[serde(default = "one")]
    pub clients: u32,
}

fn one() -> u32 {
    1
}

/// A link, as an index into [`Topology::links`].
pub type LinkId = usize;
/// A site, as an index into [`Topology::sites`].
pub type SiteIndex = usize;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub between: [String; 2],
    pub hops: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub name: String,
    pub vertex: String,
    /// See [`SiteEntry::clients`].
    pub clients: u32,
}

/// The links of a transfer, in order, and their hops.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    pub links: Vec<LinkId>,
    pub hops: u32,
}

/// A checked topology with all routes.
#[derive(Debug, Clone)]
pub struct Topology {
    file: TopologyFile,
    pub sites: Vec<Site>,
    pub links: Vec<Link>,
    /// Hops between a client and its site's vertex.
    pub access_hops: u32,
    between_sites: Vec<Vec<Route>>,
    from_origin: Vec<Route>,
    /// For each site the others, nearest first, the site itself at the beginning.
    nearest: Vec<Vec<SiteIndex>>,
}

impl Topology {
    pub fn parse(text: &str) -> Result<Self, InvalidTopology> {
        let file: TopologyFile = toml::from_str(text).map_err(|e| InvalidTopology(e.to_string()))?;
        Self::new(file)
    }

    /// A provider's network as a tree: an exchange with the origin, a core, `regions` below it and `sites` below each
    /// region. The exchange is 4 hops from the core, a region 3, a site 2 hops from its region; regions form a ring
    /// of links of 3 hops if there are more than two.
    pub fn tree(regions: usize, sites: usize) -> Result<Self, InvalidTopology> {
        let link = |a: &str, b: &str, hops| LinkEntry { between: [a.to_owned(), b.to_owned()], hops };
        let mut file = TopologyFile {
            origin: "exchange".to_owned(),
            access_hops: 1,
            links: vec![link("exchange", "core", 4)],
            sites: Vec::new(),
        };
        for region in 1..=regions {
            let name = format!("region{region}");
            file.links.push(link("core", &name, 3));
            if regions > 2 {
                let next = format!("region{}", region % regions + 1);
                file.links.push(link(&name, &next, 3));
            }
            for site in 1..=sites {
                let site = format!("site{region}-{site}");
                file.links.push(link(&name, &site, 2));
                file.sites.push(SiteEntry { name: site, at: None, clients: 1 });
            }
        }
        Self::new(file)
    }

    pub fn new(file: TopologyFile) -> Result<Self, InvalidTopology> {
        let links: Vec<Link> = file
            .links
            .iter()
            .map(|entry| Link { between: entry.between.clone(), hops: entry.hops })
            .collect();
        let graph = Graph::new(&links)?;
        if file.sites.is_empty() {
            return invalid("there are no sites; [[sites]] adds one");
        }
        let mut sites: Vec<Site> = Vec::new();
        for entry in &file.sites {
            if sites.iter().any(|site| site.name == entry.name) {
                return invalid(format!("there are two sites {}", entry.name));
            }
            let vertex = entry.at.clone().unwrap_or_else(|| entry.name.clone());
            sites.push(Site { name: entry.name.clone(), vertex, clients: entry.clients });
        }
        if sites.iter().all(|site| site.clients == 0) {
            return invalid("no site has clients");
        }
        let vertex = |name: &str| match graph.vertices.get(name) {
            Some(vertex) => Ok(*vertex),
            None => invalid(format!("no link leads to {name}")),
        };
        let places = sites.iter().map(|site| vertex(&site.vertex)).collect::<Result<Vec<_>, _>>()?;
        let routes_from = |from: usize, name: &str| {
            let routes = graph.routes(from);
            let to_sites = places.iter().zip(&sites).map(|(place, site)| match &routes[*place] {
                Some(route) => Ok(route.clone()),
                None => invalid(format!("no way leads from {name} to site {}", site.name)),
            });
            to_sites.collect::<Result<Vec<_>, _>>()
        };
        let from_origin = routes_from(vertex(&file.origin)?, &file.origin)?;
        let mut between_sites = Vec::with_capacity(sites.len());
        for (place, site) in places.iter().zip(&sites) {
            between_sites.push(routes_from(*place, &site.name)?);
        }
        let nearest = between_sites
            .iter()
            .enumerate()
            .map(|(own, routes)| {
                let mut order: Vec<SiteIndex> = (0..sites.len()).collect();
                order.sort_by_key(|site| (*site != own, routes[*site].hops, *site));
                order
            })
            .collect();
        let access_hops = file.access_hops;
        Ok(Self { file, sites, links, access_hops, between_sites, from_origin, nearest })
    }

    /// As it would be written in a file.
    pub fn file(&self) -> &TopologyFile {
        &self.file
    }

    pub fn between(&self, from: SiteIndex, to: SiteIndex) -> &Route {
        &self.between_sites[from][to]
    }

    pub fn from_origin(&self, to: SiteIndex) -> &Route {
        &self.from_origin[to]
    }

    /// The site itself, then the others, nearest first.
    pub fn nearest(&self, site: SiteIndex) -> &[SiteIndex] {
        &self.nearest[site]
    }
}

struct Graph {
    vertices: BTreeMap<String, usize>,
    /// For each vertex: neighbour, link, hops.
    neighbours: Vec<Vec<(usize, LinkId, u32)>>,
}

impl Graph {
    fn new(links: &[Link]) -> Result<Self, InvalidTopology> {
        let mut graph = Self { vertices: BTreeMap::new(), neighbours: Vec::new() };
        for (id, link) in links.iter().enumerate() {
            let [a, b] = &link.between;
            if a == b {
                return invalid(format!("a link leads from {a} to itself"));
            }
            if link.hops == 0 {
                return invalid(format!("the link between {a} and {b} has no hops; it has at least 1"));
            }
            let [a, b] = [a, b].map(|name| graph.vertex(name));
            graph.neighbours[a].push((b, id, link.hops));
            graph.neighbours[b].push((a, id, link.hops));
        }
        Ok(graph)
    }

    fn vertex(&mut self, name: &str) -> usize {
        let next = self.neighbours.len();
        let vertex = *self.vertices.entry(name.to_owned()).or_insert(next);
        if vertex == next {
            self.neighbours.push(Vec::new());
        }
        vertex
    }

    /// Shortest routes to every vertex that can be reached (Dijkstra's algorithm; networks here are small).
    fn routes(&self, from: usize) -> Vec<Option<Route>> {
        let mut routes: Vec<Option<Route>> = vec![None; self.neighbours.len()];
        let mut done = vec![false; self.neighbours.len()];
        routes[from] = Some(Route::default());
        loop {
            let reached = |vertex: usize| routes[vertex].as_ref().map(|route| (route.hops, vertex));
            let open = (0..routes.len()).filter(|vertex| !done[*vertex]);
            let Some((hops, vertex)) = open.filter_map(reached).min() else { return routes };
            done[vertex] = true;
            for &(next, link, link_hops) in &self.neighbours[vertex] {
                let through = hops + link_hops;
                if routes[next].as_ref().is_none_or(|route| through < route.hops) {
                    let mut links = routes[vertex].as_ref().map(|r| r.links.clone()).unwrap_or_default();
                    links.push(link);
                    routes[next] = Some(Route { links, hops: through });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_tree_has_the_hops_that_it_promises() {
        let tree = Topology::tree(4, 4).unwrap();
        assert_eq!(tree.sites.len(), 16);
        assert_eq!(tree.from_origin(0).hops, 4 + 3 + 2);
        assert_eq!(tree.between(0, 0).hops, 0);
        assert_eq!(tree.between(0, 1).hops, 2 + 2, "sites of a region");
        assert_eq!(tree.between(0, 4).hops, 2 + 3 + 2, "neighbouring regions, over the ring");
        assert_eq!(tree.between(0, 8).hops, 2 + 6 + 2);
        assert_eq!(tree.nearest(5)[..4], [5, 4, 6, 7]);
    }

    #[test]
    fn a_file_is_read_and_wrong_ones_are_refused_with_the_reason() {
        let text = "origin = \"x\"\n[[links]]\nbetween = [\"x\", \"tokyo\"]\nhops = 7\n\
                    [[links]]\nbetween = [\"tokyo\", \"pop\"]\n\
                    [[sites]]\nname = \"tokyo\"\n[[sites]]\nname = \"osaka\"\nat = \"pop\"\nclients = 3\n";
        let topology = Topology::parse(text).unwrap();
        assert_eq!((topology.from_origin(0).hops, topology.from_origin(1).hops), (7, 8));
        assert_eq!(topology.between(1, 0).links, [1]);
        assert_eq!((topology.access_hops, topology.sites[1].clients), (1, 3));
        let again = Topology::parse(&toml::to_string(topology.file()).unwrap()).unwrap();
        assert_eq!(again.file(), topology.file());
        for (from, to, reason) in [
            ("hops = 7", "hops = 0", "at least 1"),
            ("\"osaka\"", "\"tokyo\"", "two sites tokyo"),
            ("at = \"pop\"", "at = \"nowhere\"", "no link leads to nowhere"),
            ("[\"x\", \"tokyo\"]", "[\"x\", \"y\"]", "no way leads from x to site tokyo"),
            ("[\"x\", \"tokyo\"]", "[\"x\", \"x\"]", "to itself"),
            ("hops = 7", "hop = 7", "unknown field"),
        ] {
            let error = Topology::parse(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(reason), "{to}: {error}");
        }
    }

    /// Random connected networks of up to ten vertices, each a site.
    fn networks() -> impl Strategy<Value = Topology> {
        let links = proptest::collection::vec((0..10usize, 0..10usize, 1..9u32), 0..20);
        (2..10usize, proptest::collection::vec(1..9u32, 9), links).prop_map(|(count, tree_hops, more)| {
            let name = |vertex: usize| format!("v{vertex}");
            let tree = (1..count).map(|v| (v, v * 7 % v, tree_hops[v - 1]));
            let more = more.into_iter().map(|(a, b, hops)| (a % count, b % count, hops));
            let links = tree.chain(more.filter(|(a, b, _)| a != b));
            let links = links.map(|(a, b, hops)| LinkEntry { between: [name(a), name(b)], hops });
            let sites = (0..count).map(|v| SiteEntry { name: name(v), at: None, clients: 1 });
            let (links, sites) = (links.collect(), sites.collect());
            Topology::new(TopologyFile { origin: name(0), access_hops: 1, links, sites }).unwrap()
        })
    }

    proptest! {
        #[test]
        fn routes_are_symmetric_add_up_and_are_never_beaten_by_a_detour(topology in networks()) {
            let count = topology.sites.len();
            for a in 0..count {
                for b in 0..count {
                    let route = topology.between(a, b);
                    let hops: u32 = route.links.iter().map(|link| topology.links[*link].hops).sum();
                    prop_assert_eq!(hops, route.hops);
                    prop_assert_eq!(route.hops, topology.between(b, a).hops);
                    for via in 0..count {
                        let detour = topology.between(a, via).hops + topology.between(via, b).hops;
                        prop_assert!(route.hops <= detour);
                    }
                }
                let order: Vec<u32> = topology.nearest(a).iter().map(|b| topology.between(a, *b).hops).collect();
                prop_assert!(order.is_sorted());
                prop_assert_eq!(topology.nearest(a)[0], a);
            }
        }
    }
}
