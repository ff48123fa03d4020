//! An S3 server that others wrote (moto), started for a test and ended with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const VERSION: &str = "moto[server]==5.2.5";

/// Serves on a free port, says which, and ends when nobody holds its input any more.
const PROGRAM: &str = r#"
import logging, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
tls = (sys.argv[1], sys.argv[2]) if len(sys.argv) > 1 else None
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=tls)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"#;

/// Writes a certificate for localhost that nobody but itself vouches for, and its key.
const CERTIFICATE_PROGRAM: &str = r#"
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
now = datetime.datetime.now(datetime.timezone.utc)
names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
certificate = (
    x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    .add_extension(x509.SubjectAlternativeName(names), critical=False)
    .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    .sign(key, hashes.SHA256())
)
open(sys.argv[1], "wb").write(certificate.public_bytes(serialization.Encoding.PEM))
open(sys.argv[2], "wb").write(key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
"#;

/// Python with the server installed; `None`, with instructions, where there is none. In CI that is a failure.
pub fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = match std::env::var_os("DOZO_TEST_S3_PYTHON") {
        Some(path) => path.into(),
        None => root.join("target/s3-server/bin/python"),
    };
    let mut command = Command::new(&python);
    command.args(["-c", "import moto.server"]).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let how = format!(
        "no S3 server to test on. To get one, in the folder of the project:\n    \
         python3 -m venv target/s3-server && target/s3-server/bin/pip install '{VERSION}'\n\
         or set DOZO_TEST_S3_PYTHON to a python that has it"
    );
    assert!(std::env::var_os("CI").is_none(), "{how}");
    eprintln!("SKIPPED: {how}");
    None
}

pub struct S3Server {
    process: Child,
    pub address: SocketAddr,
}

impl S3Server {
    pub fn start(python: &Path) -> Self {
        Self::start_with(python, &[])
    }

    /// Over TLS with that certificate.
    pub fn start_tls(python: &Path, certificate: &Path, key: &Path) -> Self {
        Self::start_with(python, &[certificate, key])
    }

    fn start_with(python: &Path, tls: &[&Path]) -> Self {
        let mut command = Command::new(python);
        command.arg("-c").arg(PROGRAM).args(tls).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().expect("the S3 server says its port");
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub fn make_bucket(&self, bucket: &str) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(
            stream,
            "PUT /{bucket} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

pub fn make_certificate(python: &Path, certificate: &Path, key: &Path) {
    let made = Command::new(python).arg("-c").arg(CERTIFICATE_PROGRAM).args([certificate, key]).status();
    assert!(made.unwrap().success());
}
