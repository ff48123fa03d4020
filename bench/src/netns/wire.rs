//! The network between the namespaces: one thread that passes IP packets on between tun devices, each after the delay
//! and at the rate of its path. Does what `tc netem` does, on kernels that do not have it, and counts what goes from
//! where to where.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A packet that would wait longer for its turn is dropped, as a router with a full queue does.
const QUEUE_TIME_MAX: Duration = Duration::from_millis(200);
/// The thread looks at least this often whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest packet that a tun device gives.
const PACKET_LEN_MAX: usize = 65_536;

/// One direction between two places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Path {
    /// Time of every packet on the way.
    pub delay: Duration,
    /// `None`: as fast as it goes.
    pub bytes_per_s: Option<u64>,
    pub is_cut: bool,
}

#[derive(Default)]
struct Way {
    path: Path,
    /// When the last packet will have left.
    busy_until: Option<Instant>,
    carried: Carried,
}

/// What went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Length of all IP packets, headers included.
    pub ip_bytes: u64,
    /// What TCP carried in them: contents, and what is said about them. What was sent again counts again.
    pub tcp_payload_bytes: u64,
}

type Ways = BTreeMap<(usize, usize), Way>;

/// Ends its thread when dropped.
pub struct Wire {
    ways: Arc<Mutex<Ways>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A packet on its way; the earliest is the greatest.
type OnTheWay = Reverse<(Instant, u64, usize, Vec<u8>)>;

impl Wire {
    /// Joins tun devices that do not block; `place_of` tells from a destination address which of them it is.
    pub fn new(devices: Vec<File>, place_of: fn([u8; 4]) -> Option<usize>) -> Self {
        let (ways, stop) = (Arc::<Mutex<Ways>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (ways, stop) = (ways.clone(), stop.clone());
            move || pass_on(&devices, place_of, &ways, &stop)
        });
        Self { ways, stop, thread: Some(thread) }
    }

    /// Sets the path from one place to another, for what comes from now on.
    pub fn set(&self, from: usize, to: usize, path: Path) {
        lock(&self.ways).entry((from, to)).or_default().path = path;
    }

    /// What went from one place to another so far.
    pub fn carried(&self, from: usize, to: usize) -> Carried {
        lock(&self.ways).get(&(from, to)).map_or_else(Carried::default, |way| way.carried)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked there is nothing left to end.
            let _ended = thread.join();
        }
    }
}

fn lock(ways: &Mutex<Ways>) -> MutexGuard<'_, Ways> {
    ways.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pass_on(devices: &[File], place_of: fn([u8; 4]) -> Option<usize>, ways: &Mutex<Ways>, stop: &AtomicBool) {
    let mut on_the_way: BinaryHeap<OnTheWay> = BinaryHeap::new();
    let (mut buffer, mut count) = (vec![0u8; PACKET_LEN_MAX], 0u64);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some(Reverse((due, ..))) = on_the_way.peek()
            && *due <= now
        {
            let Some(Reverse((_, _, to, packet))) = on_the_way.pop() else { break };
            // A device that takes no packet loses it, as networks do.
            let _lost = (&devices[to]).write(&packet);
        }
        let next =
            on_the_way.peek().map_or(LOOK_EVERY, |Reverse((due, ..))| due.saturating_duration_since(now));
        for from in readable(devices, next.min(LOOK_EVERY)) {
            // A few at a time, so that no device waits for another.
            for _ in 0..32 {
                let len = match (&devices[from]).read(&mut buffer) {
                    Ok(len) => len,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                let packet = &buffer[..len];
                let Some(to) = destination(packet).and_then(place_of).filter(|to| *to < devices.len()) else {
                    continue;
                };
                if let Some(due) = take(&mut lock(ways), (from, to), packet) {
                    count += 1;
                    on_the_way.push(Reverse((due, count, to, packet.to_vec())));
                }
            }
        }
    }
}

/// When a packet arrives; `None` if it does not.
fn take(ways: &mut Ways, between: (usize, usize), packet: &[u8]) -> Option<Instant> {
    let len = packet.len() as u64;
    let now = Instant::now();
    let way = ways.entry(between).or_default();
    if way.path.is_cut {
        return None;
    }
    let begins = way.busy_until.map_or(now, |until| until.max(now));
    if begins > now + QUEUE_TIME_MAX {
        return None;
    }
    let takes = way
        .path
        .bytes_per_s
        .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(len as f64 / rate.max(1) as f64));
    way.busy_until = Some(begins + takes);
    way.carried.ip_bytes += len;
    way.carried.tcp_payload_bytes += tcp_payload_len(packet).unwrap_or(0);
    Some(begins + takes + way.path.delay)
}

/// The destination of an IPv4 packet.
fn destination(packet: &[u8]) -> Option<[u8; 4]> {
    let is_v4 = packet.first()? >> 4 == 4;
    packet.get(16..20)?.try_into().ok().filter(|_| is_v4)
}

/// Length of what a TCP segment carries; `None` if the packet is none.
fn tcp_payload_len(packet: &[u8]) -> Option<u64> {
    const TCP: u8 = 6;
    let ip_header_len = usize::from(packet.first()? & 15) * 4;
    let tcp_header_len = usize::from(packet.get(ip_header_len + 12)? >> 4) * 4;
    let payload_len = packet.len().checked_sub(ip_header_len + tcp_header_len)?;
    (*packet.get(9)? == TCP).then_some(payload_len as u64)
}

/// Places of the devices that have packets, as soon as one has or the time is over.
fn readable(devices: &[File], wait: Duration) -> Vec<usize> {
    let mut polled: Vec<libc::pollfd> = devices
        .iter()
        .map(|device| libc::pollfd { fd: device.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let wait = libc::timespec {
        tv_sec: wait.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(wait.subsec_nanos()),
    };
    // SAFETY: `polled` and `wait` are there until the call returns, and the length is that of `polled`.
    let found = unsafe {
        libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &raw const wait, std::ptr::null())
    };
    let ready = |(place, poll): (usize, &libc::pollfd)| (poll.revents & libc::POLLIN != 0).then_some(place);
    if found > 0 { polled.iter().enumerate().filter_map(ready).collect() } else { Vec::new() }
}
