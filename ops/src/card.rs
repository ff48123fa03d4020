//! A card's file: whose it is, where its home is, and its private key, or where the token is that has it.
//!
//! ```json
//! {"format": "dozo card 1", "client": "carol", "home": "osaka", "public_key": "…", "private_key": "…"}
//! {"format": "dozo card 1", "client": "carol", "home": "osaka", "public_key": "…",
//!  "pkcs11": {"module": "/usr/lib/….so", "token": "…", "object": "…"}}
//! ```
//! A file with a private key is read only while nobody but its owner can.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::card::{PrivateKey, PublicKey, Signer};
use common::id::{ClientId, SiteId};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::files;

pub const FORMAT: &str = "dozo card 1";

/// Has no `Debug`: it may have the private key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardFile {
    format: String,
    pub client: ClientId,
    pub home: SiteId,
    pub public_key: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pkcs11: Option<TokenPlace>,
}

/// Where a key pair is: a token of a PKCS#11 library, and the objects' name in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPlace {
    pub module: PathBuf,
    pub token: String,
    pub object: String,
}

impl CardFile {
    /// A card that is the file itself.
    pub fn with_key(client: ClientId, home: SiteId, key: &PrivateKey) -> Self {
        let (format, public_key) = (FORMAT.to_owned(), key.public_key());
        Self { format, client, home, public_key, private_key: Some(key.seed_hex()), pkcs11: None }
    }

    /// A card whose key is in a token.
    pub fn in_token(client: ClientId, home: SiteId, public_key: PublicKey, place: TokenPlace) -> Self {
        Self { format: FORMAT.to_owned(), client, home, public_key, private_key: None, pkcs11: Some(place) }
    }

    pub fn read(path: &Path) -> Result<Self, Failure> {
        let unread = |e: &std::io::Error| {
            Failure::file("reading the card", path, e)
                .with_next_step("`dozo card new FILE --client CLIENT` makes a card")
        };
        let mode = std::fs::metadata(path).map_err(|e| unread(&e))?.mode();
        let bytes = std::fs::read(path).map_err(|e| unread(&e))?;
        let malformed = |what: &str| Failure::new(format!("{} is not a card: {what}", path.display()));
        let card: Self = serde_json::from_slice(&bytes).map_err(|e| malformed(&e.to_string()))?;
        if card.format != FORMAT {
            let what = format!("its format is {:?}, this program knows {FORMAT:?}", card.format);
            return Err(malformed(&what));
        }
        if card.private_key.is_some() == card.pkcs11.is_some() {
            return Err(malformed("it needs one of private_key and pkcs11"));
        }
        if card.private_key.is_some() && mode & 0o077 != 0 {
            let message = format!("{} has a private key and can be read by others", path.display());
            let next = format!("chmod 600 {}; have the card disabled if others had the time", path.display());
            return Err(Failure::new(message).with_next_step(next));
        }
        Ok(card)
    }

    /// Writes a new file, for its owner alone; never over one that is there.
    pub fn write_new(&self, path: &Path) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Failure::new(format!("the card cannot be written as JSON: {e}")))?;
        text.push(b'\n');
        files::write_new_private(path, &text).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::new(format!("{} is there already, and a card is not replaced", path.display()))
                    .with_next_step("choose another file name, or move that one away")
            }
            _ => Failure::file("writing the card", path, &e),
        })
    }

    /// Opens what signs for the card. `pin_file` is for tokens.
    pub fn open(&self, pin_file: Option<&Path>) -> Result<Box<dyn Signer>, Failure> {
        let signer: Box<dyn Signer> = match (&self.private_key, &self.pkcs11) {
            (Some(key), _) => Box::new(PrivateKey::from_seed_hex(key)?),
            (None, Some(place)) => open_token(place, pin_file)?,
            (None, None) => return Err(Failure::new("the card has no key")),
        };
        if signer.public_key() != self.public_key {
            let message = format!("the card's key is not {}, as its file says", self.public_key.short());
            return Err(Failure::new(message).with_next_step("look whether the right token is there"));
        }
        Ok(signer)
    }
}

/// Makes a key pair in a token.
#[cfg(feature = "pkcs11")]
pub fn generate_in_token(place: &TokenPlace, pin_file: Option<&Path>) -> Result<PublicKey, Failure> {
    Ok(crate::token::Token::generate(place, &read_pin(pin_file)?)?.public_key())
}

#[cfg(feature = "pkcs11")]
fn open_token(place: &TokenPlace, pin_file: Option<&Path>) -> Result<Box<dyn Signer>, Failure> {
    Ok(Box::new(crate::token::Token::open(place, &read_pin(pin_file)?)?))
}

#[cfg(feature = "pkcs11")]
fn read_pin(pin_file: Option<&Path>) -> Result<String, Failure> {
    let Some(path) = pin_file else {
        return Err(Failure::usage("the card is in a token, which wants a PIN")
            .with_next_step("write the PIN into a file that only you can read, and give --pin-file FILE"));
    };
    let pin = std::fs::read_to_string(path).map_err(|e| Failure::file("reading the PIN", path, &e))?;
    Ok(pin.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(not(feature = "pkcs11"))]
pub fn generate_in_token(_place: &TokenPlace, _pin_file: Option<&Path>) -> Result<PublicKey, Failure> {
    Err(no_tokens())
}

#[cfg(not(feature = "pkcs11"))]
fn open_token(_place: &TokenPlace, _pin_file: Option<&Path>) -> Result<Box<dyn Signer>, Failure> {
    Err(no_tokens())
}

#[cfg(not(feature = "pkcs11"))]
fn no_tokens() -> Failure {
    Failure::usage("this dozo knows no PKCS#11 tokens")
        .with_next_step("use one that was built with the feature pkcs11")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn card() -> CardFile {
        let (client, home) = (ClientId::new("carol").unwrap(), SiteId::new("osaka").unwrap());
        CardFile::with_key(client, home, &PrivateKey::from_seed([7; 32]))
    }

    #[test]
    fn a_card_is_written_once_for_its_owner_and_signs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("carol.card");
        card().write_new(&path).unwrap();
        let refused = card().write_new(&path).unwrap_err();
        assert!(refused.to_string().contains("not replaced"), "{refused}");
        let read = CardFile::read(&path).unwrap();
        let signer = read.open(None).unwrap();
        let signature = signer.sign(b"x").unwrap();
        assert!(read.public_key.verifies(b"x", &signature));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = CardFile::read(&path).map(drop).unwrap_err();
        assert!(refused.next_step.unwrap().contains("chmod 600"));
    }

    #[test]
    fn what_is_not_a_card_is_refused_with_the_reason_and_without_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&card()).unwrap();
        let key = card().private_key.unwrap();
        for (n, (bad, why)) in [
            (text.replace(FORMAT, "dozo card 2"), "dozo card 2"),
            (text.replace("private_key", "secret"), "secret"),
            (text.replace(&format!(",\"private_key\":\"{key}\""), ""), "needs one of"),
            ("hello".to_owned(), "not a card"),
        ]
        .into_iter()
        .enumerate()
        {
            let path = dir.path().join(n.to_string());
            files::write_new_private(&path, bad.as_bytes()).unwrap();
            let refused = CardFile::read(&path).map(drop).unwrap_err().to_string();
            assert!(refused.contains(why) && !refused.contains(&key), "{refused}");
        }
        let other = CardFile { private_key: Some(PrivateKey::from_seed([8; 32]).seed_hex()), ..card() };
        assert!(other.open(None).is_err(), "the key is another one than the file says");
    }
}
