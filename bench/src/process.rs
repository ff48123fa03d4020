//! What the servers' processes cost: found by the ports they listen on, read from `/proc`.
//!
//! In one process that runs several roles the cost of a role cannot be told apart; then the process is reported
//! with all its servers.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::target::Watched;

/// Clock ticks a second in `/proc/PID/stat`: fixed by the kernel's interface on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time, user and system, that a process has used so far; `None` when it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

/// The most memory that this process ever had resident, in MiB; 0 where that is not told.
pub fn peak_memory_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// CPU time that the calling thread has used so far: what its own work cost, whatever else the machine does.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and `time` is a timespec that may be written to.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if done == 0 { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) } else { Duration::ZERO }
}

/// Resident memory in bytes; `None` when the process is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The process that listens on a port of this machine, if we may see it.
pub fn listening(ports: &[u16]) -> HashMap<u16, u32> {
    let mut inodes: HashMap<String, u16> = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(table) = fs::read_to_string(table) else { continue };
        inodes.extend(table.lines().skip(1).filter_map(listener).filter(|(_, port)| ports.contains(port)));
    }
    let mut found = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Ok(link) = fs::read_link(file.path()) else { continue };
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(port) = inode.and_then(|inode| inodes.get(inode)) {
                found.insert(*port, pid);
            }
        }
    }
    found
}

/// Inode and port of a line of `/proc/net/tcp`, if it is a listener (state 0A).
fn listener(line: &str) -> Option<(String, u16)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let _remote = fields.next()?;
    if fields.next()? != "0A" {
        return None;
    }
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    Some((fields.nth(5)?.to_owned(), port))
}

/// What one process cost during the measured part of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessCost {
    pub pid: u32,
    pub servers: Vec<String>,
    pub cpu_s: f64,
    /// CPU time by the requests that were measured.
    pub cpu_us_per_request: f64,
    pub rss_peak_bytes: u64,
}

/// Watches processes while a run is on.
pub struct Watch {
    servers: BTreeMap<u32, Vec<String>>,
    began: BTreeMap<u32, Duration>,
    used: BTreeMap<u32, Duration>,
    rss_peak: BTreeMap<u32, u64>,
}

impl Watch {
    /// `pids` are watched in place of what the ports lead to, if there are any.
    pub fn new(watched: &[Watched], pids: &[u32]) -> Self {
        let mut servers: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let ports: Vec<u16> = watched.iter().map(|w| w.port).collect();
        if pids.is_empty() {
            let found = listening(&ports);
            for each in watched {
                if let Some(pid) = found.get(&each.port) {
                    servers.entry(*pid).or_default().push(each.server.clone());
                }
            }
        } else {
            servers.extend(pids.iter().map(|pid| (*pid, vec![program(*pid)])));
        }
        servers.insert(std::process::id(), vec!["bench".into()]);
        Self { servers, began: BTreeMap::new(), used: BTreeMap::new(), rss_peak: BTreeMap::new() }
    }

    /// Samples until dropped at an await; the first sample is taken at once.
    pub async fn sample(&mut self, every: Duration, end: tokio::time::Instant) {
        for pid in self.servers.keys() {
            self.began.extend(cpu_time(*pid).map(|time| (*pid, time)));
        }
        loop {
            for pid in self.servers.keys() {
                self.used.extend(cpu_time(*pid).map(|time| (*pid, time)));
                let peak = self.rss_peak.entry(*pid).or_default();
                *peak = (*peak).max(resident_bytes(*pid).unwrap_or(0));
            }
            let now = tokio::time::Instant::now();
            if now >= end {
                return;
            }
            tokio::time::sleep_until(end.min(now + every)).await;
        }
    }

    pub fn costs(&self, requests: u64) -> Vec<ProcessCost> {
        let cost = |(pid, servers): (&u32, &Vec<String>)| {
            let began = self.began.get(pid)?;
            let used = self.used.get(pid)?.saturating_sub(*began);
            Some(ProcessCost {
                pid: *pid,
                servers: servers.clone(),
                cpu_s: used.as_secs_f64(),
                cpu_us_per_request: used.as_secs_f64() * 1e6 / requests.max(1) as f64,
                rss_peak_bytes: self.rss_peak.get(pid).copied().unwrap_or(0),
            })
        };
        self.servers.iter().filter_map(cost).collect()
    }
}

fn program(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "gone".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listening(&[port]).get(&port), Some(&std::process::id()));
        drop(socket);
        assert_eq!(listening(&[port]).get(&port), None);
    }

    #[test]
    fn a_busy_process_uses_cpu_time() {
        let pid = std::process::id();
        let (before, own) = (cpu_time(pid).unwrap(), thread_cpu_time());
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while cpu_time(pid).unwrap() < before + Duration::from_millis(50) {
            sum = sum.wrapping_add(crate::content::mix(sum));
            assert!(start.elapsed() < Duration::from_secs(30), "no CPU time was counted ({sum})");
        }
        assert!(thread_cpu_time() > own);
        let slept = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(20));
        assert!(thread_cpu_time() - slept < Duration::from_millis(15), "sleeping costs nothing");
        assert!(resident_bytes(pid).unwrap() > 1 << 20);
    }
}
