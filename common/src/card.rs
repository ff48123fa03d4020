//! Cards: Ed25519 key pairs (RFC 8032), each of which stands for one client that is away from home.
//!
//! A card is known by its public key, which opens nothing. Its private key signs in the client's own machine, or never
//! leaves its token: whoever can sign is a [`Signer`].

use std::fmt;
use std::str::FromStr;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::auth::fill_random;
use crate::hash::{parse_hex, write_hex};
use crate::id::InvalidId;

macro_rules! hex_type {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; $len]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// First ten hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.to_string()[..10].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.chunks(32).try_for_each(|part| write_hex(f, part))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0[..5])
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let mut bytes = [0u8; $len];
                parse_hex(text, &mut bytes).map_err(|()| InvalidId::new($kind, text, $rule))?;
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

hex_type!(
    /// A public key: of a card, or of a session that a card vouches for.
    PublicKey, 32, "public key", "64 hexadecimal digits"
);
hex_type!(
    /// An Ed25519 signature.
    Signature, 64, "signature", "128 hexadecimal digits"
);

impl PublicKey {
    /// Whether the holder of the private key signed exactly this message.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, &signature.0).is_ok()
    }
}

/// Why a card signs nothing.
#[derive(Debug, thiserror::Error)]
#[error("the card does not sign: {reason}")]
pub struct SignError {
    pub reason: String,
}

/// Holds a private key. Signing may take a token's time, and blocks.
pub trait Signer: Send {
    fn public_key(&self) -> PublicKey;

    fn sign(&self, message: &[u8]) -> Result<Signature, SignError>;
}

/// A private key in memory: a card that is a file, or a session's. Has no `Debug` and no `Display`.
pub struct PrivateKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl PrivateKey {
    pub fn generate() -> Self {
        let mut seed = [0u8; 32];
        fill_random(&mut seed);
        Self::from_seed(seed)
    }

    /// The key whose private part in the sense of RFC 8032, section 5.1.5, is `seed`.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("every 32 bytes are a seed");
        let mut public = [0u8; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { seed, pair, public: PublicKey(public) }
    }

    /// For a file that only the client reads.
    pub fn seed_hex(&self) -> String {
        PublicKey(self.seed).to_string()
    }

    /// Reads [`PrivateKey::seed_hex`]. The error does not repeat what was given: it may be nearly the secret.
    pub fn from_seed_hex(text: &str) -> Result<Self, InvalidId> {
        let mut seed = [0u8; 32];
        parse_hex(text, &mut seed)
            .map_err(|()| InvalidId::new("private key", "…", "64 hexadecimal digits"))?;
        Ok(Self::from_seed(seed))
    }

    pub fn signature(&self, message: &[u8]) -> Signature {
        let mut bytes = [0u8; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        Signature(bytes)
    }
}

impl Signer for PrivateKey {
    fn public_key(&self) -> PublicKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, SignError> {
        Ok(self.signature(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_example_of_rfc_8032_comes_out() {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let key = PrivateKey::from_seed_hex(seed).unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(key.public_key().to_string(), public);
        let signature = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac\
                         c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
        assert_eq!(key.signature(b"").to_string(), signature);
        assert!(key.public_key().verifies(b"", &signature.parse().unwrap()));
        assert_eq!(key.seed_hex(), seed);
    }

    #[test]
    fn a_signature_is_of_one_key_and_one_message() {
        let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
        let signature = key.signature(b"message");
        assert!(key.public_key().verifies(b"message", &signature));
        assert!(!key.public_key().verifies(b"massage", &signature));
        assert!(!other.public_key().verifies(b"message", &signature));
        assert!(!PublicKey::from_bytes([0; 32]).verifies(b"message", &Signature::from_bytes([0; 64])));
        let error = PrivateKey::from_seed_hex("secret").map(|_| ()).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
