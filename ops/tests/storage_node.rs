//! `dozo storage-node` as a process of its own: what it refuses to overwrite, how it ends when its disk fails, and how
//! its store is checked once it has ended.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

use bytes::Bytes;
use common::api::node::{NodeClient, RefTag};
use common::auth::ClusterSecret;
use common::client::{HttpClient, ServerClient};
use common::hash::ChunkHash;
use common::name::ContentName;
use common::time::Clock;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn arguments(folder: &Path) -> Vec<String> {
    let store = format!("file:{}?size=300MiB", folder.join("store").display());
    let text = [
        "--log-format",
        "json",
        "storage-node",
        "--name",
        "n1",
        "--site",
        "tokyo",
        "--search",
        "http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        "data",
        "--store",
        &store,
    ];
    text.into_iter().map(str::to_owned).collect()
}

struct Node {
    process: Child,
    stderr: BufReader<ChildStderr>,
    client: NodeClient,
}

impl Node {
    /// Starts a node and waits until it listens.
    fn start(command: &mut Command, folder: &Path) -> Self {
        command.current_dir(folder).env("DOZO__CLUSTER__SECRET", SECRET).env("DOZO__STOP__DELAY_MS", "0");
        command.env_remove("RUST_LOG");
        let mut process =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut stderr = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut line = String::new();
        let http = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("logs are text") > 0, "it ended before it listened");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "started" {
                break event["http"].as_str().expect("it says where").to_owned();
            }
        };
        let secret = ClusterSecret::new(SECRET).expect("it is long enough");
        let server = ServerClient::new(HttpClient::new(), secret, "gateway/tokyo.g1", Clock::System);
        Self { process, stderr, client: NodeClient::new(server, &http) }
    }

    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("logs are text");
        (self.process.wait().expect("the process can be waited for"), rest)
    }

    fn stop(self) -> (ExitStatus, String) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill is installed").success());
        self.end()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After an orderly end there is nothing to kill; after a failed assertion nothing must be left running.
        let _ended_already = self.process.kill();
        let _waited_already = self.process.wait();
    }
}

fn dozo() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dozo"))
}

fn chunk(n: u64) -> (ChunkHash, Bytes) {
    let mut bytes = vec![0; 1 << 20];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (ChunkHash::of(&bytes), bytes.into())
}

#[test]
fn a_file_with_a_file_system_in_it_is_refused_unless_forced() {
    let folder = tempfile::tempdir().expect("a folder");
    // As a file system of the ext family leaves it: nothing in the first KiB, then its superblock.
    let mut disk = vec![0u8; 2048];
    disk[1024 + 56..1024 + 58].copy_from_slice(&0xEF53u16.to_le_bytes());
    let path = folder.path().join("store");
    std::fs::write(&path, &disk).expect("the folder is writable");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it was made");
    file.set_len(300 << 20).expect("it takes no space");

    let refused: Output = dozo()
        .args(arguments(folder.path()))
        .current_dir(folder.path())
        .env("DOZO__CLUSTER__SECRET", SECRET)
        .output()
        .expect("the binary runs");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("something that is not a Dozo log") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read(&path).expect("it is there")[..2048], disk, "nothing of it was touched");

    let node = Node::start(dozo().args(arguments(folder.path())).arg("--force"), folder.path());
    let (status, log) = node.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    let node = Node::start(dozo().args(arguments(folder.path())), folder.path());
    assert_eq!(node.stop().0.code(), Some(0), "from then on it is a store like any other");
}

/// `dozo fsck` on the store of [`arguments`].
fn fsck(folder: &Path, more: &[&str]) -> Output {
    let store = format!("file:{}?size=300MiB", folder.join("store").display());
    let args = ["fsck", "--store", &store, "--data-dir", "data"];
    dozo().args(args).args(more).current_dir(folder).output().expect("the binary runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_nodes_store_is_checked_and_repaired() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::start(dozo().args(arguments(folder.path())), folder.path());
    let (hash, bytes) = chunk(1);
    let name: ContentName = "alice/film".parse().expect("it is a name");
    node.client.put_chunk(&hash, &name, RefTag(1), bytes.clone()).await.expect("the node takes it");
    // Another frame behind it: the chunk's own was acknowledged for sure.
    let (next, other) = chunk(2);
    node.client.put_chunk(&next, &name, RefTag(1), other).await.expect("the node takes it");
    let running = fsck(folder.path(), &[]);
    let error = String::from_utf8_lossy(&running.stderr).into_owned();
    assert_eq!(running.status.code(), Some(1), "{error}");
    assert!(error.contains("has it open") && error.contains("next: stop the node first"), "{error}");
    // Ended as a crash ends it: the index is behind, and was not closed.
    drop(node);

    let clean = fsck(folder.path(), &[]);
    let text = String::from_utf8_lossy(&clean.stdout).into_owned();
    assert_eq!(clean.status.code(), Some(0), "{text}");
    assert!(text.ends_with("clean\n") && text.contains("2 live"), "{text}");

    let disk = std::fs::OpenOptions::new().read(true).write(true).open(folder.path().join("store"));
    let disk = disk.expect("it is there");
    let mut start_of_log = vec![0; 16 << 20];
    disk.read_exact_at(&mut start_of_log, 0).expect("it is that long");
    let at = start_of_log.windows(64).position(|window| window == &bytes[..64]).expect("it was stored");
    disk.write_all_at(&[bytes[0] ^ 1], at as u64).expect("it is ours");
    let damaged = fsck(folder.path(), &["--json"]);
    assert_eq!(damaged.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&damaged.stdout).expect("--json prints JSON");
    assert_eq!(
        (&report["chunks"]["damaged"], &report["findings"][0]["severity"]),
        (&1.into(), &"damage".into())
    );
    assert!(String::from_utf8_lossy(&damaged.stderr).contains("--repair"));
    let repaired = fsck(folder.path(), &["--repair"]);
    let text = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert_eq!(repaired.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("repaired: chunk {hash}")), "{text}");

    let node = Node::start(dozo().args(arguments(folder.path())), folder.path());
    assert!(node.client.get_chunk_bytes(&hash).await.is_err(), "it is taken out");
    assert!(node.client.put_chunk(&hash, &name, RefTag(1), bytes).await.expect("a good copy is taken"));
    assert_eq!(node.stop().0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_fails_exits_with_1_and_recovers_what_it_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let name: ContentName = "alice/film".parse().expect("it is a name");
    let put = async |node: &Node, n: u64| {
        let (hash, bytes) = chunk(n);
        node.client.put_chunk(&hash, &name, RefTag(1), bytes).await
    };
    // The first segment is there before anything fails: space for a new one is asked for, and its lack is no failure.
    let node = Node::start(dozo().args(arguments(folder.path())), folder.path());
    put(&node, 0).await.expect("the disk is well");
    assert_eq!(node.stop().0.code(), Some(0));

    // Writes beyond 8 MiB (or 16, where the shell counts in KiB) of the file fail with EFBIG.
    let limited = "trap \"\" XFSZ; ulimit -f 16384; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_dozo")]).args(arguments(folder.path()));
    let node = Node::start(&mut command, folder.path());
    let mut acknowledged = 1;
    while put(&node, acknowledged).await.is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 20, "the limit is never reached");
    }
    assert!(acknowledged > 1, "it took some before it failed");
    let (status, log) = node.end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("dozo: storage-node/tokyo.n1 has stopped: "), "{log}");
    assert!(log.contains("next: start it again"), "{log}");

    let node = Node::start(dozo().args(arguments(folder.path())), folder.path());
    for n in 0..acknowledged {
        let (hash, bytes) = chunk(n);
        assert_eq!(node.client.get_chunk_bytes(&hash).await.expect("it was acknowledged"), bytes);
    }
    put(&node, acknowledged).await.expect("the disk is well again");
    assert_eq!(node.stop().0.code(), Some(0));
}
