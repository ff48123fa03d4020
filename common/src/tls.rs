//! TLS of a process: the certificate that its listeners show, and the authorities that it believes when it calls others.
//!
//! There is one of each for all servers of a process, set before the first of them starts; nothing of it means plain
//! HTTP. A new certificate is taken over while the process runs, by new connections.
//! (TLS 1.2 and 1.3, by rustls with ring.)

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

/// Where the parts are: PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate that listeners show, with those between it and its authority behind it. With it, and its key,
    /// the server speaks TLS on both of its listeners. Read anew at SIGHUP.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The private key of the certificate, readable by the server alone. Read anew at SIGHUP.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Certificates of the authorities that vouch for other servers; without it, those that the system believes.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read as PEM with {what}", .path.display())]
    File { path: PathBuf, what: &'static str, source: pem::Error },
    #[error("{} has no certificate", .0.display())]
    Empty(PathBuf),
    #[error("{} and {} do not belong together, or are of a kind that is not known", .cert.display(), .key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("tls.cert_file and tls.key_file go together; only one of them is set")]
    Half,
    #[error("a certificate of {} cannot be an authority", .path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("the TLS library does not start")]
    Library(#[source] rustls::Error),
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// What listeners show; `None`: plain HTTP.
static SHOWN: OnceLock<Option<Shown>> = OnceLock::new();
static BELIEVED: OnceLock<ClientConfig> = OnceLock::new();

struct Shown {
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

/// The certificate of new connections.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Sets the process's TLS; to be called before anything listens or calls. Only the first call counts.
///
/// # Errors
/// When a file cannot be used; then nothing is set.
pub fn install(files: &TlsFiles) -> Result<(), TlsError> {
    let shown = match certificate(files)? {
        Some(key) => Some(Shown::new(key)?),
        None => None,
    };
    let believed = believed(files.ca_file.as_deref())?;
    // A second call changes nothing, as promised.
    let _is_first = (SHOWN.set(shown).is_ok(), BELIEVED.set(believed).is_ok());
    Ok(())
}

/// Reads the certificate anew, for new connections.
///
/// # Errors
/// When a file cannot be used; then the certificate at hand goes on being shown.
pub fn reload(files: &TlsFiles) -> Result<(), TlsError> {
    if let (Some(key), Some(Some(shown))) = (certificate(files)?, SHOWN.get()) {
        *shown.current.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
    Ok(())
}

/// What takes connections; `None` while the process speaks plain HTTP.
pub(crate) fn acceptor() -> Option<TlsAcceptor> {
    SHOWN.get()?.as_ref().map(|shown| shown.acceptor.clone())
}

/// `https` once the process has a certificate.
pub fn scheme() -> &'static str {
    if matches!(SHOWN.get(), Some(Some(_))) { "https" } else { "http" }
}

/// Whether it is a name or IP address that a certificate can be for.
pub fn is_host(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// Connects to `http:` and `https:` addresses, with `TCP_NODELAY`, within the time.
pub fn connector(limit: Duration) -> HttpsConnector<HttpConnector> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(limit));
    tcp.enforce_http(false);
    let believed = BELIEVED.get_or_init(system_believes).clone();
    HttpsConnectorBuilder::new().with_tls_config(believed).https_or_http().enable_http1().wrap_connector(tcp)
}

impl Shown {
    fn new(key: Arc<CertifiedKey>) -> Result<Self, TlsError> {
        let current = Arc::new(Current(RwLock::new(key)));
        let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Library)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { current, acceptor: Arc::new(config).into() })
    }
}

fn certificate(files: &TlsFiles) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let (cert, key) = match (&files.cert_file, &files.key_file) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        _ => return Err(TlsError::Half),
    };
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
        path: key.clone(),
        what: "a private key",
        source,
    })?;
    let pair = CertifiedKey::from_der(chain, private, &PROVIDER).map_err(|source| TlsError::Pair {
        cert: cert.clone(),
        key: key.clone(),
        source,
    })?;
    Ok(Some(Arc::new(pair)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::File { path: path.to_owned(), what: "certificates", source };
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let certificates = read.map_err(unreadable)?;
    if certificates.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(certificates) }
}

fn believed(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let Some(path) = ca_file else { return Ok(system_believes()) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Authority { path: path.to_owned(), source })?;
    }
    Ok(client_config(roots))
}

/// The authorities that the system believes; none where it has none, so that calls fail with the reason.
fn system_believes() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    client_config(roots)
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
