//! Servers as processes of their own: started, listened to, signalled, and never left behind.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

use serde_json::Value;

/// The binary, in a folder and without what the environment of the tests would say to it.
pub fn dozo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dozo"));
    command
        .current_dir(folder)
        .env_remove("DOZO_ENDPOINTS")
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET");
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A server that logs JSON.
pub struct Server {
    process: Child,
    stderr: BufReader<ChildStderr>,
    log: Vec<Value>,
    pub http: String,
    pub admin: String,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub fn start(command: &mut Command) -> Self {
        // Nobody has to learn that it stops.
        command.env("DOZO__STOP__DELAY_MS", "0");
        command.args(["--log-format", "json"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the binary runs");
        let stderr = BufReader::new(process.stderr.take().expect("it is piped"));
        let (http, admin) = (String::new(), String::new());
        let mut server = Self { process, stderr, log: Vec::new(), http, admin };
        let started = server.wait_for_log("started");
        server.http = started["http"].as_str().expect("it says where").to_owned();
        server.admin = started["admin"].as_str().expect("it says where").to_owned();
        server
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line of the log with this message; what comes before it is kept for [`Self::log_so_far`].
    pub fn wait_for_log(&mut self, message: &str) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            let length = self.stderr.read_line(&mut line).expect("logs are text");
            assert!(length > 0, "it ended without saying {message:?}: {:?}", self.log);
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| line.trim().into());
            self.log.push(event.clone());
            if event["message"] == message {
                return event;
            }
        }
    }

    pub fn log_so_far(&self) -> &[Value] {
        &self.log
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.expect("kill is installed").success());
    }

    /// What the admin listener answers.
    pub fn admin(&self, path: &str) -> String {
        get(&self.admin, path)
    }

    pub fn admin_json(&self, path: &str) -> Value {
        let text = self.admin(path);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path} is not JSON: {text}"))
    }

    /// The value of a series.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.admin("/metrics");
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series));
        line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse().expect("it is a number"))
    }

    /// Asks it to stop; answers how it ended and what else it said.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal("TERM");
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("logs are text");
        (self.process.wait().expect("the process can be waited for"), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After an orderly end there is nothing to kill; after a failed assertion nothing must be left running.
        let _ended_already = self.process.kill();
        let _waited_already = self.process.wait();
    }
}

/// The body of an answer to a plain GET.
pub fn get(base: &str, path: &str) -> String {
    let host = base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(host).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    body.to_owned()
}
