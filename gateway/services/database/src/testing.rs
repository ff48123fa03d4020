//! A PostgreSQL server of the tests' own, in a temporary folder, reached through a Unix socket. It ends with this process,
//! however that ends.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

const HOW: &str = "install PostgreSQL (Debian: apt-get install postgresql) to run these tests on it";

/// `initdb`, then the server, until standard input ends. PostgreSQL refuses to run as root.
const SCRIPT: &str = r#"
set -eu
bin=$1 dir=$2 options=$3
as=
if [ "$(id -u)" = 0 ]; then
    chown postgres "$dir"
    as='setpriv --reuid postgres --regid postgres --clear-groups --'
fi
cd "$dir"
[ -d data ] || $as "$bin/initdb" -D data -U dozo --auth=trust --no-sync --locale=C --encoding=UTF8 >initdb.log 2>&1
$as "$bin/postgres" -D data -k "$dir" -c listen_addresses= $options </dev/null >>server.log 2>&1 &
trap 'kill -INT $! 2>/dev/null' EXIT
i=0
until [ -S .s.PGSQL.5432 ] && "$bin/pg_isready" -q -h "$dir"; do
    i=$((i + 1)); [ $i -lt 600 ] || { cat initdb.log server.log >&2; exit 1; }
    kill -0 $! || { cat server.log >&2; exit 1; }
    sleep 0.05
done
echo "ready $!"
cat >/dev/null
trap - EXIT
kill -INT $! 2>/dev/null || true
wait $! || true
[ "$4" = keep ] || rm -rf "$dir"
"#;

pub struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    options: &'static str,
    /// Ends the server when its standard input closes.
    script: Child,
    pid: u32,
    made: Mutex<Vec<String>>,
}

/// The folder with the server's programs, if it is installed; a failure where it must be.
fn installed() -> Option<PathBuf> {
    let is_here = |dir: &Path| ["initdb", "postgres", "createdb"].iter().all(|p| dir.join(p).is_file());
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&in_path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    dirs.extend(versions.map(|version| version.path().join("bin")));
    let found = dirs.into_iter().find(|dir| is_here(dir));
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{HOW}");
    found
}

impl Postgres {
    /// Starts a server; `None`, and a line that says so, if there is none here. `options` are as for `postgres`.
    pub fn start(options: &'static str) -> Option<Self> {
        let Some(bin) = installed() else {
            // Not `eprintln`, which a passed test does not show.
            let mut terminal = std::io::stderr().lock();
            writeln!(terminal, "NOT TESTED ON POSTGRESQL: {HOW}").unwrap();
            return None;
        };
        let dir = tempfile::Builder::new().prefix("dozo-postgres-").tempdir().unwrap().keep();
        let (script, pid) = run(&bin, &dir, options);
        Some(Self { bin, dir, options, script, pid, made: Mutex::default() })
    }

    /// The address of a database, which is made if it is not there.
    pub fn database(&self, name: &str) -> String {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.iter().any(|known| known == name) {
            let created = Command::new(self.bin.join("createdb"))
                .args(["-h", self.dir.to_str().unwrap(), "-U", "dozo", name])
                .status()
                .unwrap();
            assert!(created.success(), "createdb {name}");
            made.push(name.to_owned());
        }
        format!("postgres://dozo@localhost/{name}?host={}", self.dir.display())
    }

    /// One of PostgreSQL's programs, as the superuser of this server.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.args(["-h", self.dir.to_str().unwrap(), "-U", "dozo"]);
        command
    }

    /// The folder that the server's socket is in.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// Kills the server and all its children at once, as a power cut would, and starts it again.
    pub fn crash(&mut self) {
        let of_process = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = std::fs::read_to_string(of_process).unwrap();
        let all = format!("kill -9 {} {children}", self.pid);
        // One may have ended by itself meanwhile.
        let _killed = Command::new("sh").args(["-c", &all]).stderr(Stdio::null()).status().unwrap();
        drop(self.script.stdin.take());
        self.script.wait().unwrap();
        for file in ["data/postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
            let _gone = std::fs::remove_file(self.dir.join(file));
        }
        (self.script, self.pid) = run(&self.bin, &self.dir, self.options);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ended = self.script.wait();
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

fn run(bin: &Path, dir: &Path, options: &str) -> (Child, u32) {
    let keep = if options.contains("fsync=on") { "keep" } else { "" };
    let mut script = Command::new("sh")
        .args(["-c", SCRIPT, "sh", bin.to_str().unwrap(), dir.to_str().unwrap(), options, keep])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = line.strip_prefix("ready ").unwrap_or_else(|| panic!("PostgreSQL does not start in {dir:?}"));
    let pid = pid.trim().parse().unwrap();
    (script, pid)
}
