//! Where the cluster's secret comes from: a file, the environment, or the data folder of `dozo up`.

use std::path::{Path, PathBuf};

use common::auth::{ClusterSecret, random_hex};
use common::config::credential;

use crate::error::Failure;
use crate::files;

/// Environment variable with the secret itself.
pub const SECRET_VARIABLE: &str = "DOZO__CLUSTER__SECRET";
/// Name of the secret among systemd's credentials.
const CREDENTIAL: &str = "cluster-secret";
/// Name of the secret's file in a data folder.
pub const SECRET_FILE: &str = "cluster-secret";

/// How a command is told the secret.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SecretArgs {
    /// File with the cluster's secret (or the secret itself in DOZO__CLUSTER__SECRET)
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
}

impl SecretArgs {
    /// The flag's file, else the environment, else `otherwise`, else the credential that systemd gave the process.
    pub fn read(&self, otherwise: Option<&Path>) -> Result<ClusterSecret, Failure> {
        if let Some(file) = &self.cluster_secret_file {
            return read_file(file);
        }
        if let Ok(text) = std::env::var(SECRET_VARIABLE) {
            return ClusterSecret::new(&text).map_err(|e| Failure::usage(format!("{SECRET_VARIABLE}: {e}")));
        }
        let by_systemd = credential(CREDENTIAL);
        match otherwise.or(by_systemd.as_deref()) {
            Some(file) => read_file(file),
            None => Err(Failure::usage("the cluster's secret is not given")
                .with_next_step(format!("give --cluster-secret-file FILE or set {SECRET_VARIABLE}"))),
        }
    }
}

fn read_file(path: &Path) -> Result<ClusterSecret, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::file("reading the cluster secret", path, &e)
            .with_next_step(format!("give --cluster-secret-file FILE or set {SECRET_VARIABLE}"))
    })?;
    ClusterSecret::new(&text).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// The secret of a data folder; made at the first call, kept ever after.
pub fn make_or_read(data_dir: &Path) -> Result<ClusterSecret, Failure> {
    let path = data_dir.join(SECRET_FILE);
    if !path.exists() {
        let text = format!("{}\n", random_hex(32));
        files::write_private(&path, text.as_bytes())
            .map_err(|e| Failure::file("writing the cluster secret", &path, &e))?;
    }
    read_file(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = make_or_read(dir.path()).unwrap();
        let again = make_or_read(dir.path()).unwrap();
        assert_eq!(first.admin_token(), again.admin_token());
        let text = std::fs::read_to_string(dir.path().join(SECRET_FILE)).unwrap();
        assert_eq!(text.trim().len(), 64);
    }

    #[test]
    fn a_file_that_is_named_and_missing_is_an_error_with_the_next_step() {
        let args = SecretArgs { cluster_secret_file: Some("/nowhere/at/all".into()) };
        let Err(failure) = args.read(None) else { panic!("there is no such file") };
        assert!(failure.to_string().contains("/nowhere/at/all"));
        assert!(failure.next_step.unwrap().contains("--cluster-secret-file"));
    }
}
