//! What the servers' processes cost: found by the ports they listen on, read from `/proc`.
//!
//! In one process that runs several roles the cost of a role cannot be told apart; then the process is reported
//! with all its servers.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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

/// What a process has used so far, and what it has now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system.
    pub cpu: Duration,
    pub rss_bytes: u64,
    /// From block devices; 0 where the kernel does not tell us.
    pub read_bytes: u64,
    /// To block devices; 0 where the kernel does not tell us.
    pub written_bytes: u64,
    pub threads: u64,
}

/// `None` when the process is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // Another user's process does not show its input and output.
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    Some(Usage {
        cpu: cpu_time(pid)?,
        // A zombie has no memory.
        rss_bytes: field(&status, "VmRSS:")? * 1024,
        read_bytes: field(&io, "read_bytes:").unwrap_or(0),
        written_bytes: field(&io, "write_bytes:").unwrap_or(0),
        threads: field(&status, "Threads:").unwrap_or(0),
    })
}

/// The number that follows a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

pub fn program(pid: u32) -> String {
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
        let usage = usage(pid).unwrap();
        assert!(usage.rss_bytes > 1 << 20 && usage.threads >= 1 && usage.cpu > before, "{usage:?}");
        assert_eq!(super::usage(u32::MAX), None);
    }
}
