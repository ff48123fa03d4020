//! Clients of S3-compatible stores, and the cryptography they use.

use object_store::aws::AmazonS3Builder;

/// A client of a bucket, to be completed by the caller. Keys, and whatever is not said here, come from the
/// environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, …). Plain HTTP is spoken to an `http://` endpoint and to
/// no other.
pub fn client(bucket: &str, endpoint: Option<&str>, region: Option<&str>) -> AmazonS3Builder {
    install_tls();
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    match region {
        Some(region) => builder.with_region(region),
        None => builder,
    }
}

/// TLS needs one provider of cryptography for the whole process; ours is ring. Certificates are verified against the
/// system's trusted ones.
fn install_tls() {
    // An error says that there is one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
}
