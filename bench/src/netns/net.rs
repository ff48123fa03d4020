//! Network namespaces, one for each place, joined by a [`Wire`]. Everything is gone when the [`Net`] is dropped, or,
//! should this process be killed, by [`crate::orphans`].

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::wire::{Carried, Path, Wire};
use super::{NetnsError, io as failed};
use crate::orphans::{Kind, watch};

const DEVICE: &str = "wan0";

/// Answers whether this machine has namespaces for us.
///
/// # Errors
/// `Unavailable`, with what is missing.
pub fn available() -> Result<(), NetnsError> {
    if !Command::new("ip").arg("-V").output().is_ok_and(|out| out.status.success()) {
        return Err(NetnsError::Unavailable("`ip` is not there; install iproute2".into()));
    }
    let missing = |error| {
        NetnsError::Unavailable(format!("no tun device can be made, be root and have /dev/net/tun: {error}"))
    };
    tun(&new_device_name()).map(drop).map_err(missing)
}

/// Until a device is in its namespace it has a name of its own.
fn new_device_name() -> String {
    format!("dzt{}", std::process::id() % 1_000_000)
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
fn ip(words: &str) -> Result<String, NetnsError> {
    let out = Command::new("ip").args(words.split(' ')).output().map_err(failed(format!("ip {words}")))?;
    if !out.status.success() {
        let answer = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(NetnsError::Ip { words: words.to_owned(), answer });
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

pub struct Net {
    places: Vec<String>,
    prefix: String,
    wire: Wire,
}

impl Net {
    /// One namespace for each name; all are joined, without any delay at first. Other functions take these names only,
    /// and panic when there is no such place.
    pub fn new(places: &[&str]) -> Result<Self, NetnsError> {
        available()?;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let prefix = format!("dz{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut devices = Vec::new();
        for place in 0..places.len() {
            let (space, name) = (format!("{prefix}-{place}"), new_device_name());
            watch(Kind::Namespace, &space).map_err(failed("watching over namespaces"))?;
            ip(&format!("netns add {space}"))?;
            devices.push(tun(&name).map_err(failed("making a tun device"))?);
            ip(&format!("link set {name} netns {space} name {DEVICE}"))?;
            ip(&format!("-n {space} addr add {}/16 dev {DEVICE}", address(place)))?;
            ip(&format!("-n {space} link set {DEVICE} up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        let places = places.iter().map(|place| (*place).to_owned()).collect();
        Ok(Self { places, prefix, wire: Wire::new(devices, place_of) })
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
    pub fn sent_bytes(&self, name: &str) -> Result<u64, NetnsError> {
        let words = format!("-n {} -s -j link show dev {DEVICE}", self.space(name));
        let answer = ip(&words)?;
        let links: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        links[0]["stats64"]["tx"]["bytes"].as_u64().ok_or(NetnsError::Ip { words, answer })
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
    pub fn at<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let entering = format!("entering the namespace of {name}");
        let space =
            File::open(format!("/run/netns/{}", self.space(name))).map_err(failed(entering.clone()))?;
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                // SAFETY: the descriptor is open, and only this thread changes its namespace.
                let entered = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
                if entered != 0 {
                    return Err(failed(entering)(io::Error::last_os_error()));
                }
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in 0..self.places.len() {
            // What cannot be deleted is told nowhere: it is a second failure.
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
