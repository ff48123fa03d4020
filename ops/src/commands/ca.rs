//! `ca`: a small certificate authority for a cluster's own servers: one key, kept in a folder, that vouches for names and
//! addresses. Whoever believes its certificate (`ca.pem`) believes the servers it vouched for.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use common::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::error::Failure;
use crate::output;

/// The authority's certificate, in its folder.
pub const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
/// How long certificates are good, unless it is said: ten years, and as long as browsers take it.
pub const AUTHORITY_DAYS: i64 = 3650;
pub const SERVER_DAYS: i64 = 397;
/// Clocks of other machines may be behind by so much.
const CLOCK_SKEW: Duration = Duration::hours(1);

#[derive(Debug, clap::Subcommand)]
pub enum CaCommand {
    /// Make an authority: ca.pem for everybody, ca-key.pem to be kept away from the servers
    Init {
        /// The folder, which is made
        dir: PathBuf,
        /// Days until it must be replaced
        #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(i64).range(1..=36_500))]
        days: i64,
    },
    /// Vouch for a server: NAME.pem and NAME-key.pem beside ca.pem
    Issue {
        /// The folder of `dozo ca init`
        dir: PathBuf,
        /// What the files are called
        name: String,
        /// Name or IP address under which others reach the server; may be repeated
        #[arg(long = "host", required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// Days until it must be issued anew; files of the same name are replaced, SIGHUP has servers take them
        #[arg(long, default_value_t = SERVER_DAYS, value_parser = clap::value_parser!(i64).range(1..=36_500))]
        days: i64,
    },
}

pub fn ca(command: CaCommand) -> Result<(), Failure> {
    match command {
        CaCommand::Init { dir, days } => {
            init(&dir, days)?;
            output::line(&format!("{} is for everybody, {} for you alone", CA_CERT, CA_KEY))
        }
        CaCommand::Issue { dir, name, hosts, days } => {
            let (cert, key) = issue(&dir, &name, &hosts, days)?;
            output::line(&format!("cert_file = {:?}\nkey_file = {:?}", cert.display(), key.display()))
        }
    }
}

/// Makes an authority in a folder that has none.
pub fn init(dir: &Path, days: i64) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|e| Failure::file("making", dir, &e))?;
    let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
    if cert_path.exists() || key_path.exists() {
        let message = format!("there is an authority in {} already", dir.display());
        return Err(
            Failure::new(message).with_next_step("take another folder; what it vouched for stays good")
        );
    }
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = valid_for(CertificateParams::default(), days);
    params.distinguished_name.push(DnType::CommonName, "Dozo authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(&key).map_err(failed)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&cert_path, &cert.pem(), 0o644)
}

/// Vouches for a server; answers the files of its certificate and key.
pub fn issue(dir: &Path, name: &str, hosts: &[String], days: i64) -> Result<(PathBuf, PathBuf), Failure> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_name) {
        let message = format!("{name:?} is no name for files: letters, digits, '-', '_' and '.' are");
        return Err(Failure::usage(message));
    }
    let read = |file: &str| {
        let path = dir.join(file);
        std::fs::read_to_string(&path).map_err(|e| {
            Failure::file("reading", &path, &e).with_next_step("`dozo ca init DIR` makes an authority")
        })
    };
    let authority = KeyPair::from_pem(&read(CA_KEY)?).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&read(CA_CERT)?, authority).map_err(failed)?;
    if let Some(host) = hosts.iter().find(|host| !tls::is_host(host.strip_prefix("*.").unwrap_or(host))) {
        return Err(Failure::usage(format!("{host:?} is no host name and no IP address")));
    }
    let params = CertificateParams::new(hosts.to_vec()).map_err(failed)?;
    let mut params = valid_for(params, days);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.signed_by(&key, &issuer).map_err(failed)?;
    let (cert_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}-key.pem")));
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&cert_path, &cert.pem(), 0o644)?;
    Ok((cert_path, key_path))
}

fn valid_for(mut params: CertificateParams, days: i64) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + Duration::days(days));
    params.distinguished_name = DistinguishedName::new();
    params
}

fn failed(error: rcgen::Error) -> Failure {
    Failure::new(format!("the certificate cannot be made: {error}"))
}

/// Replaces a file in one step: a server that reads it meanwhile has the old or the new one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let made = path.with_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&made)
        .and_then(|mut file: File| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&made, path));
    written.map_err(|e| Failure::file("writing", path, &e))
}
