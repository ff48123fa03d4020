//! Processes of a test: the binary they run, the ports they take, and that none of them stays behind.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The `dozo` binary beside this test's own, built once.
pub fn dozo() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/PROFILE/deps/e2e-…: the binary lies one folder up.
        let own = std::env::current_exe().expect("this test has a path");
        let profile_dir = own.parent().and_then(Path::parent).expect("target/PROFILE/deps");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--workspace", "--bin", "dozo"]);
        // What the outer cargo tells of this crate would have build scripts run, and all above them built, again.
        let of_this_crate = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars_os() {
            if of_this_crate.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                build.env_remove(name);
            }
        }
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"));
        if profile_dir.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        if let Some(target_dir) = profile_dir.parent() {
            build.env("CARGO_TARGET_DIR", target_dir);
        }
        assert!(build.status().expect("cargo runs").success(), "the dozo binary does not build");
        profile_dir.join("dozo")
    })
}

/// One process.
pub struct Process {
    pub child: Child,
    /// As given to `dozo`, so it can be started again.
    pub arguments: Vec<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A base of 100 ports of which those that a cluster takes are free now. Below the range that the system hands out
/// for outgoing connections, so they stay free.
pub fn free_ports() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..200 {
        // Test processes that run at the same time begin at different places.
        let place = u64::from(std::process::id()) * 7 + NEXT.fetch_add(1, Ordering::Relaxed);
        let base = 12_000 + (place % 190) as u16 * 100;
        if (0..100).all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok()) {
            return base;
        }
    }
    panic!("no 100 free ports were found");
}
