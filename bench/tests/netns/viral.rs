//! A content that everybody wants: each site collects it once, from the nearest, and the origin is spared.

use std::time::{Duration, Instant};

use bench::content::Content;
use bench::netns::net::Net;

use crate::cluster::{Cluster, ORIGIN, SEARCH, SOON, eventually};
use crate::turn;

const SITES: [&str; 10] =
    ["site0", "site1", "site2", "site3", "site4", "site5", "site6", "site7", "site8", "site9"];
const CLIENTS_PER_SITE: usize = 3;
const LEN: usize = 3 << 20;

/// Sites on a line, 4 ms from one to the next; search and the origin are 60 ms from all.
fn set_links(net: &Net) {
    for (a, site) in SITES.iter().enumerate() {
        net.set_round_trip(SEARCH, site, Duration::from_millis(60));
        net.set_round_trip(ORIGIN, site, Duration::from_millis(60));
        for (b, other) in SITES.iter().enumerate().skip(a + 1) {
            net.set_round_trip(site, other, Duration::from_millis(4) * (b - a) as u32);
        }
    }
}

/// All clients ask, those of a site at once, the sites one after the other with this pause.
fn ask(cluster: &Cluster, title: &str, name: &str, bytes: &[u8], pause: Duration) -> Duration {
    let clients: Vec<_> = SITES
        .iter()
        .flat_map(|site| (0..CLIENTS_PER_SITE).map(move |n| (*site, n)))
        .map(|(site, n)| (site, cluster.add_client(&format!("{site}-{n}-of-{title}"), site)))
        .collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (place, (site, client)) in clients.iter().enumerate() {
            let starts = pause * (place / CLIENTS_PER_SITE) as u32;
            scope.spawn(move || {
                std::thread::sleep(starts.saturating_sub(begun.elapsed()));
                // Many debug builds start here at once on few cores: search may not answer in its time.
                let answer = eventually("the content is delivered", SOON, || {
                    let answer = cluster.at(site, || client.get_content(name));
                    if answer.status == 503 { Err(answer.text()) } else { Ok(answer.expect(200)) }
                });
                assert!(answer.body == bytes, "the bytes differ");
            });
        }
    });
    begun.elapsed()
}

fn collected(cluster: &Cluster, site: &str, from: &str) -> u64 {
    cluster.figure(site, "gateway", "dozo_gateway_collected_bytes_total", &[from]) as u64
}

#[test]
fn of_a_content_that_all_sites_want_each_collects_one_copy_and_the_origin_sends_few() {
    let Some(_turn) = turn() else { return };
    let cluster = Cluster::start(&SITES, set_links);
    let wanted = (SITES.len() * CLIENTS_PER_SITE * LEN) as f64;
    let mut before = 0;
    let on_links = || SITES.iter().map(|site| cluster.net.carried(ORIGIN, site).ip_bytes).sum::<u64>();
    for (id, (title, pause)) in
        [("at-once", Duration::ZERO), ("in-turn", Duration::from_millis(1500))].iter().enumerate()
    {
        let bytes = Content::new(11, id as u64, LEN as u64).bytes(0, LEN).to_vec();
        std::fs::write(cluster.path("studio").join(format!("{id}.bin")), &bytes).unwrap();
        let name = format!("studio/{id}.bin");
        cluster.await_held(&name, &[], 1);
        let from_origin = on_links();
        let took = ask(&cluster, title, &name, &bytes, *pause);
        let sum = |from| SITES.iter().map(|site| collected(&cluster, site, from)).sum::<u64>();
        let (origin, peer) = (sum("origin"), sum("peer"));
        let now = origin - before;
        before = origin;
        println!(
            "{title}: {} clients at {} sites in {took:.1?}; origin bytes / (clients x size) = {:.3}; \
             packets of the origin {:.1} MiB; from sites so far {:.1} MiB",
            SITES.len() * CLIENTS_PER_SITE,
            SITES.len(),
            now as f64 / wanted,
            (on_links() - from_origin) as f64 / f64::from(1 << 20),
            peer as f64 / f64::from(1 << 20)
        );
        // Each site has one copy, whatever many clients it has; counted over both contents.
        assert_eq!(origin + peer, ((id + 1) * SITES.len() * LEN) as u64);
        if !pause.is_zero() {
            assert!(now <= 2 * LEN as u64, "{now} bytes from the origin; the second site has another to ask");
        }
    }
}
