//! Where `dozo up` puts things: ports, names and folders. All fixed by the options, so a second run has the same
//! addresses and finds its data.
//!
//! | port | server |
//! |---|---|
//! | P+0 | search |
//! | P+1 | origin |
//! | P+2 | service billing |
//! | P+3 | content billing |
//! | P+4 | mobile access: HTTP, and UDP for broadcasts |
//! | P+10, P+20, P+30, P+40 | gateway of the first, second, third, fourth site |
//! | P+12…P+19, P+22…P+29, … | storage nodes of that site |
//! | each of these + 50 | its admin listener |
//!
//! P+11, P+21, … are kept free for a gateway's second front, P+5 for servers to come.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use common::id::{InvalidId, ServerName, SiteId};

pub const SITES_MAX: usize = 4;
pub const NODES_MAX: usize = 8;
/// Ports from the base that belong to one `dozo up`.
pub const PORT_SPAN: u16 = 100;

const ADMIN_OFFSET: u16 = 50;

/// Listeners of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listeners {
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

/// Ports counted from a base; base 0 means any free ports, different ones at each run.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub base: u16,
}

impl Ports {
    fn at(self, offset: usize) -> Listeners {
        let address = |offset: u16| {
            let port = if self.base == 0 { 0 } else { self.base.saturating_add(offset) };
            SocketAddr::from(([127, 0, 0, 1], port))
        };
        // At most 49: sites and nodes are bounded above.
        let offset = offset as u16;
        Listeners { http: address(offset), admin: address(offset + ADMIN_OFFSET) }
    }

    pub fn search(self) -> Listeners {
        self.at(0)
    }

    pub fn origin(self) -> Listeners {
        self.at(1)
    }

    pub fn service_billing(self) -> Listeners {
        self.at(2)
    }

    pub fn content_billing(self) -> Listeners {
        self.at(3)
    }

    pub fn mobile_access(self) -> Listeners {
        self.at(4)
    }

    /// `site` counts from 0.
    pub fn gateway(self, site: usize) -> Listeners {
        self.at(10 * (site + 1))
    }

    /// `site` and `node` count from 0.
    pub fn node(self, site: usize, node: usize) -> Listeners {
        self.at(10 * (site + 1) + 2 + node)
    }
}

/// Name of a site, counted from 0: `tokyo`, `osaka`, then `site3` and so on.
pub fn site_name(index: usize) -> Result<SiteId, InvalidId> {
    match index {
        0 => SiteId::new("tokyo"),
        1 => SiteId::new("osaka"),
        _ => SiteId::new(&format!("site{}", index + 1)),
    }
}

/// Name of a node in its site, counted from 0: `n1`, `n2`, …
pub fn node_name(index: usize) -> Result<ServerName, InvalidId> {
    ServerName::new(&format!("n{}", index + 1))
}

/// Folders of a data folder.
#[derive(Debug, Clone)]
pub struct Folders {
    pub root: PathBuf,
}

impl Folders {
    /// The folder of a server without a site: `search`, `service-billing`, …
    pub fn server(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What the origin keeps about its sources.
    pub fn origin_state(&self) -> PathBuf {
        self.root.join("origin").join("state")
    }

    /// Sample contents that the origin registers.
    pub fn studio(&self) -> PathBuf {
        self.root.join("origin").join("studio")
    }

    pub fn node(&self, site: &SiteId, node: &ServerName) -> PathBuf {
        self.root.join("sites").join(site.as_str()).join("nodes").join(node.as_str())
    }

    /// Cards of the demo's clients.
    pub fn cards(&self) -> PathBuf {
        self.root.join("cards")
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// An absolute path, so that stored addresses do not depend on where the command was started.
    pub fn absolute(data_dir: &Path) -> std::io::Result<Self> {
        Ok(Self { root: std::path::absolute(data_dir)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_has_a_port_of_its_own_within_the_span() {
        let ports = Ports { base: 8000 };
        let mut all = vec![ports.search(), ports.origin(), ports.service_billing(), ports.content_billing()];
        all.push(ports.mobile_access());
        for site in 0..SITES_MAX {
            all.push(ports.gateway(site));
            all.extend((0..NODES_MAX).map(|node| ports.node(site, node)));
        }
        let mut used: Vec<u16> = all.iter().flat_map(|l| [l.http.port(), l.admin.port()]).collect();
        let count = used.len();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), count, "two listeners share a port");
        assert!(used.iter().all(|p| (8000..8000 + PORT_SPAN).contains(p)));
        assert_eq!((ports.gateway(0).http.port(), ports.node(1, 0).admin.port()), (8010, 8072));
    }

    #[test]
    fn base_zero_takes_free_ports() {
        assert_eq!(Ports { base: 0 }.node(3, 7).http.port(), 0);
    }
}
