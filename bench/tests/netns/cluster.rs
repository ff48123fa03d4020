//! [`Sites`], with clients of theirs; what does not go well ends the test.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use bench::netns::net::Net;
use bench::netns::sites::{STUDIO, Sites};
use common::api::peer::Ranking;

use crate::http::{Answer, Client};
use crate::process::dozo;

pub use bench::netns::sites::{ORIGIN, SEARCH};

/// Longest wait for what the system brings about by itself.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until `check` gives a value; the last refusal is told if it never does.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let give_up = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= give_up => panic!("{what}: not within {limit:?}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

pub struct Cluster {
    sites: Sites,
    clients: BTreeMap<String, Client>,
}

impl Deref for Cluster {
    type Target = Sites;

    fn deref(&self) -> &Sites {
        &self.sites
    }
}

impl Cluster {
    /// Starts a site for each name, each with a client and a public bucket of the site's name, on links that are set
    /// before.
    pub fn start(names: &[&str], set_links: impl FnOnce(&Net)) -> Self {
        let sites = Sites::start(dozo(), names, set_links).expect("sites start");
        let owners = names.iter().map(|site| (*site, *site)).chain([(STUDIO, names[0])]);
        let clients = owners.map(|(name, site)| {
            let keys = sites.add_provider(name, site).expect("a provider is added");
            (name.to_owned(), Client::new(name, &sites.url(site, "gateway"), &keys.token))
        });
        let clients = clients.collect();
        Self { sites, clients }
    }

    /// A further client of a site.
    pub fn add_client(&self, name: &str, site: &str) -> Client {
        let keys = self.sites.add_client(name, site).expect("a client is added");
        Client::new(name, &self.url(site, "gateway"), &keys.token)
    }

    /// The site's own client asks for a content, from within the site.
    #[track_caller]
    pub fn get(&self, site: &str, name: &str) -> Answer {
        let client = &self.clients[site];
        self.at(site, || client.get_content(name))
    }

    #[track_caller]
    pub fn put(&self, site: &str, name: &str, bytes: &[u8]) {
        let client = &self.clients[site];
        self.at(site, || client.put_content(name, bytes)).expect(201);
    }

    /// Does `work` with sockets of a place.
    pub fn at<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        self.net.at(place, work).expect("the place is there")
    }

    /// Waits until search knows all these holders of a content.
    #[track_caller]
    pub fn await_held(&self, name: &str, sites: &[&str], origins: usize) {
        self.sites.await_held(name, sites, origins).expect("it is held soon");
    }

    /// How a site's gateway would rank the sources of a content now.
    pub fn ranking(&self, site: &str, name: &str) -> Ranking {
        let operator = Client::new("operator", &self.url(site, "gateway"), self.admin_token());
        self.at(site, || operator.get(&format!("/v1/peer/ranking?name={name}"))).expect(200).json()
    }

    /// A figure of a site's gateway, summed over the series that have all these labels.
    pub fn figure(&self, place: &str, role: &str, name: &str, labels: &[&str]) -> f64 {
        let admin = Client::new("operator", &self.admin_url(place, role), self.admin_token());
        let text = self.at(place, || admin.get("/metrics")).expect(200).text();
        let of_name = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && labels.iter().all(|l| line.contains(l))
        });
        of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
