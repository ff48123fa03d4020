//! A link between two servers that a test can slow down, falsify, break at a chosen moment and cut: a proxy of TCP
//! connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::{SOON, eventually, lock};

/// What a link does to requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// So many bytes of the next request arrive, never all of it; then the connection breaks.
    TornRequests { after_bytes: usize },
    /// The same, but the connection stays open and silent: the rest arrives once this fault is over.
    StalledRequests { after_bytes: usize },
    /// The request arrives and is carried out; the connection breaks when the answer comes.
    LostAnswers,
    /// The request arrives and is carried out; its answer comes once this fault is over.
    StalledAnswers,
}

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
    fault: Mutex<Fault>,
    fault_changed: Condvar,
    /// Requests and answers that the present fault has hit, and connections that a cut has refused.
    struck: AtomicU64,
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
                    served.struck.fetch_add(1, Ordering::SeqCst);
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

    /// From now on requests and answers fare so.
    pub fn strike(&self, fault: Fault) {
        self.state.struck.store(0, Ordering::SeqCst);
        *lock(&self.state.fault) = fault;
        self.state.fault_changed.notify_all();
    }

    /// Requests and answers that the present fault has hit, and connections that a cut has refused.
    pub fn struck(&self) -> u64 {
        self.state.struck.load(Ordering::SeqCst)
    }

    /// Waits until the present fault has hit so many.
    #[track_caller]
    pub fn await_struck(&self, count: u64) {
        eventually("the fault hits what the link carries", SOON, || {
            let struck = self.struck();
            if struck >= count { Ok(()) } else { Err(format!("{struck} of {count}")) }
        });
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
            let arrives = self.suffer(&piece[..len], is_down, &mut to);
            if !arrives.is_ok_and(|arrives| arrives) {
                break;
            }
        }
        let _gone_already = to.shutdown(Shutdown::Both);
        let _gone_already = from.shutdown(Shutdown::Both);
    }

    /// Carries a piece as the present fault lets it; whether the connection lives on.
    fn suffer(&self, piece: &[u8], is_down: bool, to: &mut TcpStream) -> std::io::Result<bool> {
        let fault = *lock(&self.fault);
        // Never the whole, however short it is.
        let part = |after_bytes: usize| after_bytes.min(piece.len() - 1);
        match (fault, is_down) {
            (Fault::TornRequests { after_bytes }, false) => {
                to.write_all(&piece[..part(after_bytes)])?;
                self.struck.fetch_add(1, Ordering::SeqCst);
                Ok(false)
            }
            (Fault::StalledRequests { after_bytes }, false) => {
                let (first, rest) = piece.split_at(part(after_bytes));
                to.write_all(first)?;
                self.outwait(fault);
                to.write_all(rest).map(|()| true)
            }
            (Fault::LostAnswers, true) => {
                self.struck.fetch_add(1, Ordering::SeqCst);
                Ok(false)
            }
            (Fault::StalledAnswers, true) => {
                self.outwait(fault);
                to.write_all(piece).map(|()| true)
            }
            _ => to.write_all(piece).map(|()| true),
        }
    }

    /// Counts a hit and waits for another fault than this one.
    fn outwait(&self, fault: Fault) {
        let present = lock(&self.fault);
        self.struck.fetch_add(1, Ordering::SeqCst);
        let changed = self.fault_changed.wait_while(present, |present| *present == fault);
        drop(changed.unwrap_or_else(PoisonError::into_inner));
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
