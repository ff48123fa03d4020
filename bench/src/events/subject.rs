//! A server's process: found by its port, stopped by signals, started again as it was.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::process::usage;

/// How a process was started, as `/proc` tells it while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
    /// Files that its output goes to; `None`: to nobody.
    outputs: [Option<PathBuf>; 2],
}

impl CommandLine {
    /// # Errors
    /// The process is gone, or another user's.
    pub fn of(pid: u32) -> io::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let words = |name: &str| {
            let bytes = fs::read(proc.join(name))?;
            let end = bytes.len() - usize::from(bytes.ends_with(&[0]));
            Ok::<_, io::Error>(bytes[..end].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        let pair = |word: Vec<u8>| {
            let at = word.iter().position(|byte| *byte == b'=')?;
            Some((OsString::from_vec(word[..at].to_vec()), OsString::from_vec(word[at + 1..].to_vec())))
        };
        let output = |number: u8| {
            let path = fs::read_link(proc.join(format!("fd/{number}"))).ok()?;
            // A pipe's reader does not get what another process writes.
            path.is_file().then_some(path)
        };
        Ok(Self {
            program: fs::read_link(proc.join("exe"))?,
            arguments: words("cmdline")?.into_iter().skip(1).map(OsString::from_vec).collect(),
            environment: words("environ")?.into_iter().filter_map(pair).collect(),
            folder: fs::read_link(proc.join("cwd"))?,
            outputs: [output(1), output(2)],
        })
    }

    /// Starts it again, in a process group of its own: it goes on when the harness ends.
    ///
    /// # Errors
    /// The program is gone, or no process can be started.
    pub fn start(&self) -> io::Result<Child> {
        let output = |path: &Option<PathBuf>| match path {
            Some(path) => File::options().append(true).open(path).map(Stdio::from),
            None => Ok(Stdio::null()),
        };
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(output(&self.outputs[0])?)
            .stderr(output(&self.outputs[1])?)
            .process_group(0)
            .spawn()
    }
}

/// # Errors
/// The process is gone, or another user's.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill only takes numbers; a positive id means that one process.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a process has ended, even if its parent has not taken notice.
pub fn has_ended(pid: u32) -> bool {
    usage(pid).is_none()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_is_started_again_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut first = Command::new("sh");
        first.args(["-c", "echo \"$0 $GREETING $PWD\"; exec sleep 60", "a b"]).env("GREETING", "good day");
        first.current_dir(folder.path()).stdin(Stdio::null()).stdout(File::create(&log).unwrap());
        let mut first = first.spawn().unwrap();
        let give_up = Instant::now() + Duration::from_secs(10);
        while fs::read_to_string(&log).unwrap().is_empty() {
            assert!(Instant::now() < give_up, "the shell says nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        // What is read is what the shell became.
        let sleeping = loop {
            let line = CommandLine::of(first.id()).unwrap();
            if line.program.ends_with("sleep") || line.arguments == ["60"] {
                break line;
            }
            assert!(Instant::now() < give_up, "{line:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(sleeping.folder, folder.path());
        assert_eq!(sleeping.outputs[0].as_deref(), Some(log.as_path()));
        assert!(sleeping.environment.contains(&("GREETING".into(), "good day".into())));
        signal(first.id(), libc::SIGKILL).unwrap();
        while !has_ended(first.id()) {
            assert!(Instant::now() < give_up, "it is killed and runs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _status = first.wait().unwrap();
        let mut second = sleeping.start().unwrap();
        assert!(!has_ended(second.id()));
        second.kill().unwrap();
        second.wait().unwrap();
        assert!(has_ended(second.id()) && CommandLine::of(second.id()).is_err());
    }
}
