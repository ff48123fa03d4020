//! Signatures of S3's requests: AWS Signature Version 4, with the body left unsigned where it is made as it goes out.

use std::fmt::Write as _;
use std::time::SystemTime;

use ring::{digest, hmac};
use time::OffsetDateTime;

/// Stands in the place of the body's hash: TLS or the reader's own checks protect the body.
pub const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Whoever signs, and for where.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.access_key, self.region)
    }
}

/// What of a request is signed.
pub struct Signed<'a> {
    pub method: &'a str,
    /// Percent-encoded.
    pub path: &'a str,
    /// `key=value` pairs, percent-encoded, in the order of their keys.
    pub query: &'a str,
    /// By name, lower case, in order; with the host and every `x-amz-` header.
    pub headers: &'a [(&'a str, &'a str)],
    /// Hash of the body in hexadecimal digits, or [`UNSIGNED`].
    pub payload: &'a str,
}

/// Signs requests; the key of the day is kept.
pub struct Signer {
    credentials: Credentials,
    day: String,
    key: hmac::Key,
}

impl Signer {
    pub fn new(credentials: Credentials) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[]);
        Self { credentials, day: String::new(), key }
    }

    /// The value of the `Authorization` header; `time` is that of the `x-amz-date` header.
    pub fn authorization(&mut self, signed: &Signed<'_>, time: &str) -> String {
        let day = time.get(..8).unwrap_or(time);
        if day != self.day {
            self.key = day_key(&self.credentials, day, "s3");
            day.clone_into(&mut self.day);
        }
        let names: Vec<&str> = signed.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = format!("{}\n{}\n{}\n", signed.method, signed.path, signed.query);
        for (name, value) in signed.headers {
            // Writing to a String cannot fail.
            let _infallible = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _infallible = write!(canonical, "\n{names}\n{}", signed.payload);
        let scope = format!("{day}/{}/s3/aws4_request", self.credentials.region);
        let request = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let signature =
            hmac::sign(&self.key, format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{request}").as_bytes());
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={}",
            self.credentials.access_key,
            hex(signature.as_ref())
        )
    }
}

fn day_key(credentials: &Credentials, day: &str, service: &str) -> hmac::Key {
    let secret = format!("AWS4{}", credentials.secret_key);
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    for part in [day, &credentials.region, service, "aws4_request"] {
        let next = hmac::sign(&key, part.as_bytes());
        key = hmac::Key::new(hmac::HMAC_SHA256, next.as_ref());
    }
    key
}

/// As in `20130524T000000Z`.
pub fn timestamp(now: SystemTime) -> String {
    let now = OffsetDateTime::from(now);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const TIME: &str = "20130524T000000Z";

    /// The published examples' signer, and what it says last.
    fn signature(method: &str, path: &str, query: &str, headers: &[(&str, &str)], payload: &str) -> String {
        let mut signer = Signer::new(Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
        });
        let signed = Signed { method, path, query, headers, payload };
        let text = signer.authorization(&signed, TIME);
        assert_eq!(text, signer.authorization(&signed, TIME), "the kept key is the same");
        assert!(text.contains("Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"));
        text.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The examples of "Signature Calculations for the Authorization Header" in S3's API reference.
    #[test]
    fn the_published_examples_are_signed_alike() {
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let (hash, date) = (("x-amz-content-sha256", EMPTY), ("x-amz-date", TIME));
        assert_eq!(
            signature("GET", "/test.txt", "", &[host, ("range", "bytes=0-9"), hash, date], EMPTY),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signature("GET", "/", "lifecycle=", &[host, hash, date], EMPTY),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature("GET", "/", "max-keys=2&prefix=J", &[host, hash, date], EMPTY),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
        let body = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
        let headers = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            host,
            ("x-amz-content-sha256", body),
            date,
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        assert_eq!(
            signature("PUT", "/test%24file.text", "", &headers, body),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
    }

    #[test]
    fn times_are_written_as_they_are_signed() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        assert_eq!(timestamp(at), TIME);
    }
}
