//! The simulation of `bench traffic` against real sites: one small trace, replayed over both.
//!
//! The hops of the topology become delay, so that the near are near. Requests come one after the other, each when what the
//! one before brought about is known to search, as the simulation's transfers take no time. Counted is what TCP carries
//! between sites, and from the origin, times the hops of the route: contents and what is said about them (heads,
//! chunk lists, probes). Beside it are the counters of the devices, which have IP and TCP headers and acknowledgements
//! too.

use bench::content::Content;
use bench::traffic::topology::Topology;
use bench::traffic::trace::{Sizes, TraceParameters};
use bench::traffic::{Model, Rules, replay};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, ORIGIN, SOON, eventually};
use crate::turn;

/// Delay of a packet for each hop.
const HOP: Duration = Duration::from_millis(2);
const BUCKET: &str = "studio";

fn parameters() -> TraceParameters {
    let kib = f64::from(1 << 10);
    TraceParameters {
        seed: 5,
        clients: 12,
        contents: 40,
        requests: 120,
        sizes: Sizes {
            median: 400.0 * kib,
            sigma: 0.9,
            tail: 0.0,
            tail_alpha: 1.1,
            min: 32 << 10,
            max: 4 << 20,
        },
        ..TraceParameters::default()
    }
}

#[test]
fn real_sites_send_as_many_bytes_over_as_many_hops_as_the_simulation_says() {
    let Some(_turn) = turn() else { return };
    let topology = Topology::tree(2, 2).unwrap();
    let trace = parameters().generate(&topology).unwrap();
    let names: Vec<&str> = topology.sites.iter().map(|site| site.name.as_str()).collect();
    let simulated = replay(Model::Sites, Rules::default(), &trace, &topology);

    let cluster = Cluster::start(&names, |net| {
        for (a, name) in names.iter().enumerate() {
            net.set_round_trip(ORIGIN, name, 2 * HOP * topology.from_origin(a).hops);
            for (b, other) in names.iter().enumerate().skip(a + 1) {
                net.set_round_trip(name, other, 2 * HOP * topology.between(a, b).hops);
            }
        }
    });
    let bytes_of = |content: usize| {
        let len = trace.contents[content].len;
        Content::new(23, content as u64, len).bytes(0, len as usize)
    };
    let name_of = |content: usize| format!("{BUCKET}/{content}.bin");
    for content in 0..trace.contents.len() {
        std::fs::write(cluster.path(BUCKET).join(format!("{content}.bin")), bytes_of(content)).unwrap();
    }
    (0..trace.contents.len()).for_each(|content| cluster.await_held(&name_of(content), &[], 1));
    let clients: Vec<_> = (trace.clients.iter().enumerate())
        .map(|(n, client)| cluster.add_client(&format!("client{n}"), names[client.home]))
        .collect();

    let (before, begun) = (carried(&cluster, &topology), Instant::now());
    let (mut local, mut from_peer, mut from_origin) = (0, 0, 0);
    for request in &trace.requests {
        let (name, home) = (name_of(request.content), names[trace.clients[request.client].home]);
        let client = &clients[request.client];
        let answer = eventually("the content is delivered", SOON, || {
            let answer = cluster.net.at(home, || client.get_content(&name));
            if answer.status == 503 { Err(answer.text()) } else { Ok(answer.expect(200)) }
        });
        assert!(answer.body == bytes_of(request.content), "the bytes differ");
        match answer.header("dozo-source") {
            Some("hit") => local += 1,
            Some("peer") => from_peer += 1,
            _ => from_origin += 1,
        }
        if answer.header("dozo-source") != Some("hit") {
            cluster.await_held(&name, &[home], 1);
        }
    }
    let after = carried(&cluster, &topology);
    let real = after.minus(before);
    let inter_site_byte_hops = simulated.byte_hops - u64::from(topology.access_hops) * simulated.access_bytes;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{} requests of {} clients at {} sites in {:.0?}\n\
         sources: simulated {} local, {} from a site, {} from the origin; real {local}, {from_peer}, {from_origin}\n\
         inter-site payload: simulated {:.2} MiB, TCP payload on the links {:.2} MiB, IP packets {:.2} MiB\n\
         payload x hops: simulated {:.2}, TCP payload {:.2} ({:+.2} %), IP packets {:.2} MiB-hops ({:+.2} %)",
        trace.requests.len(),
        trace.clients.len(),
        names.len(),
        begun.elapsed(),
        simulated.local,
        simulated.from_peer,
        simulated.from_origin,
        mib(simulated.origin_bytes + simulated.peer_bytes),
        mib(real.tcp_payload_bytes),
        mib(real.ip_bytes),
        mib(inter_site_byte_hops),
        mib(real.tcp_payload_byte_hops),
        more(real.tcp_payload_byte_hops, inter_site_byte_hops),
        mib(real.ip_byte_hops),
        more(real.ip_byte_hops, inter_site_byte_hops),
    );
    assert_eq!(
        (local, from_peer, from_origin),
        (simulated.local, simulated.from_peer, simulated.from_origin)
    );
    for (simulated, real) in [
        (simulated.origin_bytes + simulated.peer_bytes, real.tcp_payload_bytes),
        (inter_site_byte_hops, real.tcp_payload_byte_hops),
    ] {
        let more = more(real, simulated);
        assert!(
            more.abs() <= 5.0,
            "{real} bytes or byte-hops on the links, {simulated} simulated: {more:+.2} %"
        );
    }
    // The kernel's counters say the same as the wire that joins the devices.
    let (mut wire, mut kernel) = (0, 0);
    for name in &names {
        kernel += cluster.net.sent_bytes(name);
        wire += cluster.net.sent_by(name);
    }
    println!("sent by sites: {kernel} bytes by the devices' counters, {wire} over the wire");
    assert!(more(kernel, wire).abs() < 1.0, "{kernel} bytes by the devices' counters, {wire} over the wire");
}

/// How many percent more than expected.
fn more(measured: u64, expected: u64) -> f64 {
    100.0 * (measured as f64 / expected as f64 - 1.0)
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    ip_bytes: u64,
    ip_byte_hops: u64,
    tcp_payload_bytes: u64,
    tcp_payload_byte_hops: u64,
}

impl Sums {
    fn minus(self, before: Self) -> Self {
        Self {
            ip_bytes: self.ip_bytes - before.ip_bytes,
            ip_byte_hops: self.ip_byte_hops - before.ip_byte_hops,
            tcp_payload_bytes: self.tcp_payload_bytes - before.tcp_payload_bytes,
            tcp_payload_byte_hops: self.tcp_payload_byte_hops - before.tcp_payload_byte_hops,
        }
    }
}

/// What went between sites and between them and the origin so far, in both directions.
fn carried(cluster: &Cluster, topology: &Topology) -> Sums {
    let mut sums = Sums::default();
    let mut add = |a: &str, b: &str, hops: u32| {
        for carried in [cluster.net.carried(a, b), cluster.net.carried(b, a)] {
            sums.ip_bytes += carried.ip_bytes;
            sums.ip_byte_hops += carried.ip_bytes * u64::from(hops);
            sums.tcp_payload_bytes += carried.tcp_payload_bytes;
            sums.tcp_payload_byte_hops += carried.tcp_payload_bytes * u64::from(hops);
        }
    };
    for (a, site) in topology.sites.iter().enumerate() {
        add(ORIGIN, &site.name, topology.from_origin(a).hops);
        for (b, other) in topology.sites.iter().enumerate().skip(a + 1) {
            add(&site.name, &other.name, topology.between(a, b).hops);
        }
    }
    sums
}
