//! Clients that publish, ask and visit all the time, and take refusals as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bench::content::Content;

use crate::cluster::Cluster;
use crate::http::Client;

const CONTENT_BYTES: u64 = 150_000;
/// Between two turns of a client: the machine has other work to do.
const PAUSE: Duration = Duration::from_millis(150);

/// Ends with its test.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `alice` of tokyo publishes; `bob` of tokyo, and `carol` of osaka at home and as a visitor, ask for it and for what
    /// the origin has.
    pub fn start(cluster: &Cluster) -> Self {
        static PUBLISHED: AtomicU64 = AtomicU64::new(0);
        let stop = Arc::new(AtomicBool::new(false));
        let (alice, bob, carol) = (cluster.client("alice"), cluster.client("bob"), cluster.client("carol"));
        let visiting = carol.at(cluster.gateway("tokyo"));
        let publish = move |turn: u64| {
            let bytes = Content::new(7, turn, CONTENT_BYTES).bytes(0, CONTENT_BYTES as usize);
            let answer = alice.try_send("PUT", &format!("/v1/contents/alice/load/{turn}"), &[], &bytes);
            if answer.is_ok_and(|answer| answer.status == 201) {
                PUBLISHED.store(turn, Ordering::Relaxed);
            }
        };
        let ask = |client: Client| {
            move |turn: u64| {
                let newest = PUBLISHED.load(Ordering::Relaxed);
                // Mostly what is new, sometimes again what was had, sometimes the origin's.
                let name = match turn % 4 {
                    0 => "studio/film.bin".to_owned(),
                    1 => format!("alice/load/{}", newest.saturating_sub(3)),
                    _ => format!("alice/load/{newest}"),
                };
                let _refused = client.try_send("GET", &format!("/v1/contents/{name}"), &[], &[]);
            }
        };
        let mut load = Self { stop, clients: Vec::new() };
        load.spawn(publish);
        load.spawn(ask(bob));
        load.spawn(ask(carol));
        load.spawn(ask(visiting));
        load
    }

    fn spawn(&mut self, mut turn: impl FnMut(u64) + Send + 'static) {
        let stop = self.stop.clone();
        self.clients.push(std::thread::spawn(move || {
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                turn(number);
                std::thread::sleep(PAUSE);
            }
        }));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            // A panic was printed by its thread.
            let _panicked = client.join();
        }
    }
}
