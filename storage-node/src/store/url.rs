//! What `--store` may say.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use common::config::parse_bytes;
use common::s3::KeysFile;

use super::SIZE_BYTES_MIN;

const FILE_BYTES_DEFAULT: u64 = 20 << 30;
const MEMORY_BYTES_DEFAULT: u64 = 1 << 30;
const S3_BYTES_DEFAULT: u64 = 1 << 40;
const PROFILE_DEFAULT: &str = "default";

/// Where a node keeps its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:/path?size=20GiB`: a block store in a file that is made with that size (20 GiB if not said). The file takes
    /// space as it fills; with `&prefill=true` all of it at the start, and is as fast as a device from then on.
    File { path: PathBuf, size_bytes: u64, prefill: bool },
    /// `device:/dev/nvme1n1`: a block store on a whole raw device.
    Device { path: PathBuf },
    /// `dir:/path`: files with one large or many small chunks each.
    Dir { path: PathBuf },
    /// `s3://bucket/prefix?endpoint=URL&region=R&capacity=1TiB`: objects of the same kind in an S3-compatible
    /// store. Keys come from the file that `&credentials=FILE` names, or from `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`.
    S3 {
        bucket: String,
        prefix: String,
        endpoint: Option<String>,
        region: Option<String>,
        /// `&credentials=FILE&profile=NAME`: a file of keys as the AWS tools write it.
        keys: Option<KeysFile>,
        capacity_bytes: u64,
    },
    /// `memory:` or `memory:?size=2GiB`: a block store in memory (1 GiB if not said), gone with the process.
    Memory { size_bytes: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store {url:?}: {problem}")]
pub struct InvalidStoreUrl {
    url: String,
    problem: String,
}

impl StoreUrl {
    /// Whether chunks are objects, apart from the log.
    pub fn has_objects(&self) -> bool {
        matches!(self, Self::Dir { .. } | Self::S3 { .. })
    }
}

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, InvalidStoreUrl> {
        parse(url).map_err(|problem| InvalidStoreUrl { url: without_keys(url), problem })
    }
}

fn parse(url: &str) -> Result<StoreUrl, String> {
    const KINDS: &str = "file:/path?size=20GiB, device:/dev/x, dir:/path, s3://bucket/prefix, memory:";
    let (scheme, rest) = url.split_once(':').ok_or(format!("must be one of {KINDS}"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut options = Options::parse(query)?;
    let parsed = match scheme {
        "file" => {
            let size_bytes = options.bytes("size", FILE_BYTES_DEFAULT)?;
            let prefill = options.flag("prefill")?;
            StoreUrl::File { path: path_of(place)?, size_bytes: at_least(size_bytes)?, prefill }
        }
        "device" => StoreUrl::Device { path: path_of(place)? },
        "dir" => StoreUrl::Dir { path: path_of(place)? },
        "memory" if place.is_empty() => {
            StoreUrl::Memory { size_bytes: at_least(options.bytes("size", MEMORY_BYTES_DEFAULT)?)? }
        }
        "s3" => {
            let place = place.strip_prefix("//").ok_or("must look like s3://bucket/prefix")?;
            let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
            if bucket.is_empty() {
                return Err("names no bucket: s3://bucket/prefix".into());
            }
            StoreUrl::S3 {
                bucket: bucket.into(),
                prefix: prefix.trim_matches('/').into(),
                capacity_bytes: options.bytes("capacity", S3_BYTES_DEFAULT)?,
                endpoint: options.take("endpoint").map(endpoint).transpose()?,
                region: options.take("region"),
                keys: options.keys_file()?,
            }
        }
        _ => return Err(format!("must be one of {KINDS}")),
    };
    options.nothing_left()?;
    Ok(parsed)
}

fn path_of(place: &str) -> Result<PathBuf, String> {
    // `file:///path` is the same as `file:/path`.
    let place = place.strip_prefix("//").unwrap_or(place);
    if place.is_empty() { Err("names no path".into()) } else { Ok(place.into()) }
}

fn at_least(size_bytes: u64) -> Result<u64, String> {
    if size_bytes < SIZE_BYTES_MIN {
        return Err(format!("size is below the smallest possible, {SIZE_BYTES_MIN} bytes (300MiB will do)"));
    }
    Ok(size_bytes)
}

/// An address is shown and logged, so it must not contain keys.
fn endpoint(address: String) -> Result<String, String> {
    if !address.starts_with("http://") && !address.starts_with("https://") {
        return Err("endpoint must begin with http:// or https://".into());
    }
    if address.contains('@') {
        return Err(
            "keys do not belong into the endpoint; give credentials=FILE, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into()
        );
    }
    Ok(address)
}

/// The text, cut where keys in an address would begin.
fn without_keys(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((before, _)) if before.contains("://") => {
            let shown = before.rsplit_once("://").map_or("", |(shown, _)| shown);
            format!("{shown}://…")
        }
        _ => url.into(),
    }
}

struct Options(Vec<(String, String)>);

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').ok_or(format!("option {text:?} has no value"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        query.split('&').filter(|t| !t.is_empty()).map(pair).collect::<Result<_, String>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn bytes(&mut self, name: &str, default: u64) -> Result<u64, String> {
        self.take(name).map_or(Ok(default), |text| parse_bytes(&text).map_err(|e| format!("{name}: {e}")))
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        self.take(name)
            .map_or(Ok(false), |text| text.parse().map_err(|_| format!("{name}: must be true or false")))
    }

    fn keys_file(&mut self) -> Result<Option<KeysFile>, String> {
        let (path, profile) = (self.take("credentials"), self.take("profile"));
        match (path, profile) {
            (None, Some(_)) => Err("profile: names one of a file, give credentials=FILE".into()),
            (path, profile) => Ok(path.map(|path| KeysFile {
                path: path.into(),
                profile: profile.unwrap_or_else(|| PROFILE_DEFAULT.into()),
            })),
        }
    }

    fn nothing_left(&self) -> Result<(), String> {
        self.0.first().map_or(Ok(()), |(name, _)| Err(format!("has no option {name:?}")))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, size_bytes, prefill } => {
                write!(f, "file:{}?size={}", path.display(), exact(*size_bytes))?;
                if *prefill { f.write_str("&prefill=true") } else { Ok(()) }
            }
            Self::Device { path } => write!(f, "device:{}", path.display()),
            Self::Dir { path } => write!(f, "dir:{}", path.display()),
            Self::Memory { size_bytes } => write!(f, "memory:?size={}", exact(*size_bytes)),
            Self::S3 { bucket, prefix, endpoint, region, keys, capacity_bytes } => {
                write!(f, "s3://{bucket}/{prefix}?capacity={}", exact(*capacity_bytes))?;
                for (name, value) in [("endpoint", endpoint), ("region", region)] {
                    if let Some(value) = value {
                        write!(f, "&{name}={value}")?;
                    }
                }
                if let Some(KeysFile { path, profile }) = keys {
                    write!(f, "&credentials={}&profile={profile}", path.display())?;
                }
                Ok(())
            }
        }
    }
}

/// In the largest unit that loses nothing.
fn exact(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or(bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_store_is_read_as_it_is_shown() {
        for text in [
            "file:/var/lib/dozo/n1?size=20GiB",
            "file:/var/lib/dozo/n1?size=20GiB&prefill=true",
            "device:/dev/nvme1n1",
            "dir:/srv/chunks",
            "memory:?size=512MiB",
            "s3://bucket/a/b?capacity=1TiB&endpoint=http://127.0.0.1:3900&region=garage",
            "s3://bucket/a?capacity=1TiB&credentials=/etc/dozo/keys&profile=chunks",
        ] {
            assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
        }
        let file = StoreUrl::File { path: "/x".into(), size_bytes: 20 << 30, prefill: false };
        assert_eq!("file:/x".parse(), Ok(file.clone()));
        assert_eq!("file:///x".parse(), Ok(file));
        assert_eq!("memory:".parse(), Ok(StoreUrl::Memory { size_bytes: 1 << 30 }));
    }

    #[test]
    fn a_wrong_store_says_what_is_wrong_with_it() {
        for (text, problem) in [
            ("/dev/sda", "must be one of"),
            ("ftp://x", "must be one of"),
            ("file:", "no path"),
            ("file:/x?size=10MiB", "smallest possible"),
            ("file:/x?size=lots", "count of bytes"),
            ("file:/x?prefill=maybe", "true or false"),
            ("file:/x?sise=1GiB", "no option \"sise\""),
            ("s3://b?profile=x", "credentials=FILE"),
            ("s3:bucket", "s3://bucket/prefix"),
            ("s3:///prefix", "names no bucket"),
            ("s3://b?endpoint=127.0.0.1:9", "http://"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn keys_in_an_address_are_refused_and_not_repeated() {
        let error = "s3://b?endpoint=http://me:hidden@127.0.0.1:9".parse::<StoreUrl>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error}");
    }
}
