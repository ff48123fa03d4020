//! Nothing stays behind: what a run makes goes when its process ends, be it killed.

use std::io::{Error, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A `dozo` process, by its id.
    Process,
    /// A folder with all that is in it, by its path.
    Folder,
    /// A network namespace, by its name.
    Namespace,
}

/// Ends the process when dropped.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Has something removed when this process ends, however it ends.
///
/// # Errors
/// The shell that watches cannot be started, or is gone.
pub fn watch(kind: Kind, what: &str) -> Result<(), Error> {
    static WATCHER: OnceLock<Mutex<Child>> = OnceLock::new();
    const SCRIPT: &str = r#"trap '' INT TERM HUP
pids=; dirs=; spaces=
while read -r kind what; do
  case "$kind" in pid) pids="$pids $what";; dir) dirs="$dirs $what";; netns) spaces="$spaces $what";; esac
done
for pid in $pids; do
  if [ "$(cat /proc/$pid/comm 2>/dev/null)" = dozo ]; then kill -9 "$pid"; fi
done
for space in $spaces; do ip netns del "$space"; done
for dir in $dirs; do rm -rf "$dir"; done"#;
    let watcher = match WATCHER.get() {
        Some(watcher) => watcher,
        None => {
            let mut shell = Command::new("sh");
            shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let shell = Mutex::new(shell.spawn()?);
            // A second one that was started at the same time reads its end, and ends.
            WATCHER.get_or_init(|| shell)
        }
    };
    let word = match kind {
        Kind::Process => "pid",
        Kind::Folder => "dir",
        Kind::Namespace => "netns",
    };
    let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
    let input = watcher.stdin.as_mut().ok_or_else(|| Error::other("the watching shell reads nothing"))?;
    writeln!(input, "{word} {what}")
}
