//! A link between two servers that a test can slow down, falsify and cut: a proxy of TCP connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cluster::lock;

/// A link to one server. Its threads end with the process.
pub struct Link {
    /// What the other end is reached at, `http://host:port`.
    pub http: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    to: Mutex<Option<SocketAddr>>,
    /// Of what comes from the server; 0: as fast as it goes.
    bytes_per_s: AtomicU64,
    /// When the bytes sent so far have used up their time.
    paid_until: Mutex<Option<Instant>>,
    falsifies: AtomicBool,
    is_cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    carried_bytes: AtomicU64,
}

impl Link {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let served = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Some(to) = *lock(&served.to) else { continue };
                if served.is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(to) else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                lock(&served.open).extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (up, down) = (served.clone(), served.clone());
                let (client_in, server_out) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || up.carry(client_in, server_out, false));
                std::thread::spawn(move || down.carry(server, client, true));
            }
        });
        Self { http, state }
    }

    /// Where it leads, `http://host:port`.
    pub fn lead_to(&self, http: &str) {
        *lock(&self.state.to) = Some(http.trim_start_matches("http://").parse().unwrap());
    }

    /// Carries no more than this from the server; 0 is without limit.
    pub fn slow_down(&self, bytes_per_s: u64) {
        self.state.bytes_per_s.store(bytes_per_s, Ordering::SeqCst);
    }

    /// Changes a bit in every large piece from the server.
    pub fn falsify(&self, falsifies: bool) {
        self.state.falsifies.store(falsifies, Ordering::SeqCst);
    }

    /// Closes every connection, and takes new ones only to close them.
    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
        for stream in lock(&self.state.open).drain(..) {
            let _gone_already = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// Bytes from the server so far.
    pub fn carried_bytes(&self) -> u64 {
        self.state.carried_bytes.load(Ordering::SeqCst)
    }
}

impl State {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, is_down: bool) {
        let mut piece = vec![0; 16 << 10];
        while let Ok(len @ 1..) = from.read(&mut piece) {
            if is_down {
                self.pay(len as u64);
                self.carried_bytes.fetch_add(len as u64, Ordering::SeqCst);
                if self.falsifies.load(Ordering::SeqCst) && len > 8 << 10 {
                    piece[len - 1] ^= 1;
                }
            }
            if to.write_all(&piece[..len]).is_err() {
                break;
            }
        }
        let _gone_already = to.shutdown(Shutdown::Both);
        let _gone_already = from.shutdown(Shutdown::Both);
    }

    /// Waits as long as these bytes take.
    fn pay(&self, len: u64) {
        let rate = self.bytes_per_s.load(Ordering::SeqCst);
        if rate == 0 {
            return;
        }
        let until = {
            let mut paid = lock(&self.paid_until);
            let from = paid.map_or_else(Instant::now, |until| until.max(Instant::now()));
            let until = from + Duration::from_secs_f64(len as f64 / rate as f64);
            *paid = Some(until);
            until
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}
