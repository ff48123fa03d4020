//! Network namespaces, one for each place, joined by a [`Wire`]. Everything is gone when the [`Net`] is dropped, or,
//! should this process be killed, by the watcher of [`crate::process`].

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::process::watch;
use crate::wire::{Carried, Path, Wire};

const DEVICE: &str = "wan0";

/// What is missing for namespaces on this machine.
pub fn available() -> Result<(), String> {
    if !Command::new("ip").arg("-V").output().is_ok_and(|out| out.status.success()) {
        return Err("`ip` is not there; install iproute2".into());
    }
    let name = format!("dzt{}", std::process::id() % 1_000_000);
    tun(&name)
        .map(drop)
        .map_err(|error| format!("no tun device can be made, be root and have /dev/net/tun: {error}"))
}

/// A tun device; it is there as long as the file is open.
fn tun(name: &str) -> io::Result<File> {
    /// `struct ifreq` with what TUNSETIFF reads.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, of which `request` has the layout and the size.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}

/// Runs `ip` with these words.
#[track_caller]
fn ip(words: &str) -> String {
    let out = Command::new("ip").args(words.split(' ')).output().expect("ip runs");
    assert!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub struct Net {
    places: Vec<String>,
    prefix: String,
    wire: Wire,
}

impl Net {
    /// One namespace for each name; all are joined, without any delay at first.
    pub fn new(places: &[&str]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let prefix = format!("dz{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut devices = Vec::new();
        for place in 0..places.len() {
            let (space, name) =
                (format!("{prefix}-{place}"), format!("dzt{}", std::process::id() % 1_000_000));
            watch("netns", &space);
            ip(&format!("netns add {space}"));
            devices.push(tun(&name).expect("a tun device, as `available` made one"));
            ip(&format!("link set {name} netns {space} name {DEVICE}"));
            ip(&format!("-n {space} addr add {}/16 dev {DEVICE}", address(place)));
            ip(&format!("-n {space} link set {DEVICE} up"));
            ip(&format!("-n {space} link set lo up"));
        }
        let places = places.iter().map(|place| (*place).to_owned()).collect();
        Self { places, prefix, wire: Wire::new(devices, place_of) }
    }

    fn place(&self, name: &str) -> usize {
        let place = self.places.iter().position(|place| place == name);
        place.unwrap_or_else(|| panic!("there is no place {name}"))
    }

    pub fn address(&self, name: &str) -> Ipv4Addr {
        address(self.place(name))
    }

    /// Sets both directions between two places.
    pub fn set(&self, a: &str, b: &str, path: Path) {
        let (a, b) = (self.place(a), self.place(b));
        self.wire.set(a, b, path);
        self.wire.set(b, a, path);
    }

    /// Sets both directions to half of this round trip each, without a bound to the rate.
    pub fn set_round_trip(&self, a: &str, b: &str, round_trip: Duration) {
        self.set(a, b, Path { delay: round_trip / 2, ..Path::default() });
    }

    /// Takes every packet between two places away.
    pub fn cut(&self, a: &str, b: &str) {
        self.set(a, b, Path { is_cut: true, ..Path::default() });
    }

    /// What went from one place to another so far.
    pub fn carried(&self, from: &str, to: &str) -> Carried {
        self.wire.carried(self.place(from), self.place(to))
    }

    /// Bytes of IP packets that went from a place to any other.
    pub fn sent_by(&self, name: &str) -> u64 {
        let from = self.place(name);
        (0..self.places.len()).map(|to| self.wire.carried(from, to).ip_bytes).sum()
    }

    /// Bytes that the kernel says a place's device has sent.
    pub fn sent_bytes(&self, name: &str) -> u64 {
        let text = ip(&format!("-n {} -s -j link show dev {DEVICE}", self.space(name)));
        let links: serde_json::Value = serde_json::from_str(&text).expect("ip writes JSON");
        links[0]["stats64"]["tx"]["bytes"].as_u64().expect("a device has counters")
    }

    /// A command that runs in a place's namespace, as the process that it starts.
    pub fn command(&self, name: &str, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(name)]).arg(program);
        command
    }

    fn space(&self, name: &str) -> String {
        format!("{}-{}", self.prefix, self.place(name))
    }

    /// Runs `work` on a thread whose sockets are those of a place.
    pub fn at<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}", self.space(name))).expect("the namespace is there");
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                // SAFETY: the descriptor is open, and only this thread changes its namespace.
                let entered = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "{}", io::Error::last_os_error());
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in 0..self.places.len() {
            // Also when a test fails; what cannot be deleted is told nowhere, as it is a second failure.
            let _deleted =
                Command::new("ip").args(["netns", "del", &format!("{}-{place}", self.prefix)]).status();
        }
    }
}

fn address(place: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, (place / 200) as u8, (place % 200) as u8 + 1)
}

fn place_of(address: [u8; 4]) -> Option<usize> {
    let [10, 77, high, low] = address else { return None };
    Some(usize::from(high) * 200 + usize::from(low.checked_sub(1)?))
}
