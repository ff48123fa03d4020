//! What tests ask of a system beside the client's API: search, the books, metrics, the state of nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use common::api::billing::{Totals, Usage};
use common::api::search::ContentInfo;
use common::client::encode;

use crate::cluster::{Cluster, SOON, eventually};
use crate::http::Client;

impl Cluster {
    /// A content as search knows it.
    pub fn lookup(&self, name: &str) -> Result<ContentInfo, String> {
        let path = format!("/v1/contents/lookup?name={}", encode(name));
        let answer = self
            .operator(&self.endpoints.search.http)
            .try_send("GET", &path, &[], &[])
            .map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.text()) }
    }

    pub fn billing(&self, service: bool) -> Client {
        let server = if service { &self.endpoints.service_billing } else { &self.endpoints.content_billing };
        self.operator(&server.as_ref().expect("both billing servers run").http)
    }

    /// What both billing servers booked, in sum: service, content.
    pub fn totals(&self) -> [Totals; 2] {
        [true, false].map(|service| self.billing(service).get("/v1/totals").expect(200).json())
    }

    /// What both billing servers know of a client this month.
    pub fn billed(&self, client: &Client) -> [Usage; 2] {
        let path = format!("/v1/usage?client={}", client.name);
        [true, false].map(|service| self.billing(service).get(&path).expect(200).json())
    }

    /// Waits until both servers have booked exactly these deliveries of a client, by status, and watches a moment
    /// longer that there come no more.
    #[track_caller]
    pub fn await_billed(&self, client: &Client, deliveries: &[(&str, u64)]) -> [Usage; 2] {
        let expected: BTreeMap<String, u64> =
            deliveries.iter().filter(|(_, count)| *count > 0).map(|(s, c)| ((*s).to_owned(), *c)).collect();
        let booked = |usage: &Usage| -> BTreeMap<String, u64> {
            usage.deliveries.iter().filter(|(_, c)| **c > 0).map(|(s, c)| (s.clone(), *c)).collect()
        };
        let check = || {
            let usage = self.billed(client);
            let got = usage.each_ref().map(&booked);
            if got.iter().all(|each| *each == expected) {
                Ok(usage)
            } else {
                Err(format!("{got:?}, not {expected:?}"))
            }
        };
        let usage = eventually(&format!("deliveries of {} are booked", client.name), SOON, check);
        // A double booking would come with the next batches; those follow within 200 ms.
        std::thread::sleep(Duration::from_millis(400));
        assert!(check().is_ok(), "{:?}", check());
        usage
    }

    /// A figure of a server's metrics: the sum over all labels that contain `label`.
    pub fn metric(&self, server: &str, name: &str, label: &str) -> f64 {
        let at = self.server(server);
        let text = self.operator(&at.admin).get("/metrics").expect(200).text();
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole_name = labels.is_empty() || labels.starts_with('{');
            (whole_name && labels.contains(label)).then(|| value.parse::<f64>().ok())?
        };
        text.lines().filter_map(of).sum()
    }

    pub fn node_status(&self, server: &str) -> serde_json::Value {
        self.operator(&self.server(server).admin).get("/v1/node").expect(200).json()
    }

    /// Bytes that a site's nodes use.
    pub fn used_bytes(&self, site: &str) -> u64 {
        let nodes = self.site(site).nodes.iter();
        nodes
            .map(|n| self.node_status(&format!("{site}.{}", n.name))["used_bytes"].as_u64().unwrap_or(0))
            .sum()
    }
}
