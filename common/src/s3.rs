//! Clients of S3-compatible stores, and the cryptography they use.

use std::collections::BTreeMap;
use std::path::PathBuf;

use object_store::aws::AmazonS3Builder;

use crate::config::credential;

/// Name of a credentials file among systemd's credentials.
const CREDENTIAL: &str = "s3-keys";

/// Where keys are: a credentials file as the AWS tools write it, and a profile in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysFile {
    pub path: PathBuf,
    pub profile: String,
}

/// A client of a bucket, to be completed by the caller. Keys come from `keys`, else from the credentials file that
/// systemd gave the process, else, as whatever is not said here, from the environment (`AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY`, …). Plain HTTP is spoken to an `http://` endpoint and to no other.
///
/// # Errors
/// What is wrong with the file of keys, in words.
pub fn client(
    bucket: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
    keys: Option<&KeysFile>,
) -> Result<AmazonS3Builder, String> {
    install_tls();
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    let by_systemd = credential(CREDENTIAL).map(|path| KeysFile { path, profile: "default".to_owned() });
    if let Some(file) = keys.or(by_systemd.as_ref()) {
        let keys = Keys::read(file)?;
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        if let Some(token) = keys.token {
            builder = builder.with_token(token);
        }
    }
    Ok(builder)
}

/// Keys of one profile of a credentials file, as the AWS tools write it. Has no `Debug`: nobody shows it by mistake.
struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

impl Keys {
    fn read(KeysFile { path: file, profile }: &KeysFile) -> Result<Self, String> {
        let text =
            std::fs::read_to_string(file).map_err(|e| format!("credentials {}: {e}", file.display()))?;
        let mut section = String::new();
        let mut found = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name.trim().to_owned();
            } else if let Some((key, value)) = line.split_once('=')
                && section == *profile
            {
                found.insert(key.trim().to_owned(), value.trim().to_owned());
            }
        }
        let mut take = |key: &str| {
            found
                .remove(key)
                .ok_or_else(|| format!("credentials {}: profile {profile} has no {key}", file.display()))
        };
        let (id, secret) = (take("aws_access_key_id")?, take("aws_secret_access_key")?);
        Ok(Self { id, secret, token: take("aws_session_token").ok() })
    }
}

/// TLS needs one provider of cryptography for the whole process; ours is ring. Certificates are verified against the
/// system's trusted ones.
fn install_tls() {
    // An error says that there is one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_the_profile_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        let text = "# keys\n[default]\naws_access_key_id=A\naws_secret_access_key = S=/+\n\
                    [other]\naws_access_key_id = B\n";
        std::fs::write(&file, text).unwrap();
        let of = |profile: &str| KeysFile { path: file.clone(), profile: profile.to_owned() };
        let keys = Keys::read(&of("default")).ok().unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token), ("A", "S=/+", None));
        let reason = Keys::read(&of("other")).err().unwrap();
        assert!(reason.contains("profile other has no aws_secret_access_key"), "{reason}");
        assert!(Keys::read(&of("none")).err().unwrap().contains("aws_access_key_id"));
    }
}
