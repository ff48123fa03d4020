//! The machine that a run was made on: what has to be alike when two runs are compared.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
    pub memory_bytes: u64,
    /// Device, file system and size of where the harness ran.
    pub disk: String,
    /// How the kernel chooses the processors' frequency; empty where it does not.
    pub governor: String,
    /// Processors that the control group may use; `None`: as many as there are.
    pub cgroup_cores: Option<f64>,
    pub cgroup_memory_bytes: Option<u64>,
    /// Git revision of the folder that the harness ran in; empty if it is none.
    pub revision: String,
}

impl Host {
    pub fn here() -> Self {
        let cpuinfo = text("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let meminfo = text("/proc/meminfo");
        let memory = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let memory_kib = memory.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let group = text("/proc/self/cgroup");
        let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
        let limit = |name: &str| text(&format!("/sys/fs/cgroup{group}/{name}"));
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            kernel: text("/proc/sys/kernel/osrelease"),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            disk: disk().unwrap_or_default(),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            cgroup_cores: cores_of(&limit("cpu.max")),
            cgroup_memory_bytes: limit("memory.max").parse().ok(),
            revision: revision().unwrap_or_default(),
        }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Processors of `cpu.max`: microseconds of a period, then the period; `max` is no limit.
fn cores_of(cpu_max: &str) -> Option<f64> {
    let (quota, period) = cpu_max.split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

fn disk() -> Option<String> {
    let here = std::env::current_dir().ok()?;
    let mounts = text("/proc/mounts");
    let mount = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, folder, kind) = (fields.next()?, fields.next()?, fields.next()?);
        here.starts_with(folder).then_some((folder.len(), device, kind))
    });
    let (_, device, kind) = mount.max_by_key(|(len, ..)| *len)?;
    Some(format!("{device} ({kind}), {}", common::config::show_bytes(size_of(&here)?)))
}

/// Of the file system that has the folder, in bytes.
fn size_of(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.to_str()?).ok()?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and `answer` is a statvfs that may be written to.
    let done = unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has filled in the answer.
    let answer = unsafe { answer.assume_init() };
    Some(answer.f_blocks * answer.f_frsize)
}

fn revision() -> Option<String> {
    let mut git = std::process::Command::new("git");
    let output = git.args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let host = Host::here();
        assert!(host.cores > 0 && host.memory_bytes > 1 << 20 && !host.kernel.is_empty(), "{host:?}");
        assert!(host.disk.contains("iB"), "{}", host.disk);
        assert_eq!(cores_of("150000 100000"), Some(1.5));
        assert_eq!((cores_of("max 100000"), cores_of("")), (None, None));
    }
}
