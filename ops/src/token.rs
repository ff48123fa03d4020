//! Cards in PKCS#11 tokens: smart cards, USB keys, security modules. The key pair is made in the token, and its private part
//! never leaves it.
//!
//! The token's maker gives a library, which is opened at run time. Calls block; so does the token.

use std::path::Path;

use common::card::{PublicKey, SignError, Signature, Signer};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::card::TokenPlace;
use crate::error::Failure;

/// The curve, "edwards25519", in DER (PKCS#11 3.0, section 2.3.10).
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";

/// A token, opened and unlocked.
pub struct Token {
    place: TokenPlace,
    session: Session,
    public: PublicKey,
}

impl Token {
    /// Makes a key pair in the token. Refused if there is an object of that name already.
    pub fn generate(place: &TokenPlace, pin: &str) -> Result<Self, Failure> {
        let (pkcs11, slot) = open(place)?;
        let session = pkcs11.open_rw_session(slot).map_err(|e| failed(place, "opening a session", &e))?;
        login(place, &session, pin)?;
        let label = || Attribute::Label(place.object.clone().into_bytes());
        let known = session.find_objects(&[label()]).map_err(|e| failed(place, "looking for objects", &e))?;
        if !known.is_empty() {
            let message = format!("token {} has an object {} already", place.token, place.object);
            return Err(Failure::new(message).with_next_step("choose another name: --object NAME"));
        }
        let public = [
            label(),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(EDWARDS25519.to_vec()),
        ];
        let private = [
            label(),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        session
            .generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)
            .map_err(|e| failed(place, "making an Ed25519 key pair", &e))?;
        Self::with_session(place, session)
    }

    /// Opens the token that has a card's key pair.
    pub fn open(place: &TokenPlace, pin: &str) -> Result<Self, Failure> {
        let (pkcs11, slot) = open(place)?;
        let session = pkcs11.open_ro_session(slot).map_err(|e| failed(place, "opening a session", &e))?;
        login(place, &session, pin)?;
        Self::with_session(place, session)
    }

    fn with_session(place: &TokenPlace, session: Session) -> Result<Self, Failure> {
        let object = find(place, &session, ObjectClass::PUBLIC_KEY)
            .map_err(|e| failed(place, "looking for the public key", &e))?;
        let attributes = session
            .get_attributes(object, &[AttributeType::EcPoint])
            .map_err(|e| failed(place, "reading the public key", &e))?;
        let point = attributes.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => Some(point),
            _ => None,
        });
        let public = point.as_deref().and_then(public_key).ok_or_else(|| {
            Failure::new(format!("object {} of token {} is no Ed25519 key", place.object, place.token))
        })?;
        Ok(Self { place: place.clone(), session, public })
    }
}

impl Signer for Token {
    fn public_key(&self) -> PublicKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, SignError> {
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
        let signed = find(&self.place, &self.session, ObjectClass::PRIVATE_KEY)
            .and_then(|key| self.session.sign(&mechanism, key, message));
        let bytes = signed.map_err(|error| SignError { reason: error.to_string() })?;
        let bytes: [u8; 64] = bytes.try_into().map_err(|bytes: Vec<u8>| SignError {
            reason: format!("its signature has {} bytes, not 64", bytes.len()),
        })?;
        Ok(Signature::from_bytes(bytes))
    }
}

fn failed(place: &TokenPlace, doing: &str, error: &Error) -> Failure {
    Failure::new(format!("token {} of {}: {doing}: {error}", place.token, place.module.display()))
}

fn open(place: &TokenPlace) -> Result<(Pkcs11, Slot), Failure> {
    let pkcs11 = library(&place.module)?;
    let slots = pkcs11.get_slots_with_token().map_err(|e| failed(place, "looking for tokens", &e))?;
    let label = |slot: &Slot| pkcs11.get_token_info(*slot).map(|info| info.label().trim().to_owned());
    let labels: Vec<(Slot, String)> =
        slots.into_iter().filter_map(|slot| Some((slot, label(&slot).ok()?))).collect();
    match labels.iter().find(|(_, label)| *label == place.token) {
        Some((slot, _)) => Ok((pkcs11, *slot)),
        None => {
            let known: Vec<&str> = labels.iter().map(|(_, label)| label.as_str()).collect();
            Err(Failure::new(format!(
                "there is no token {} at {}; there are: {}",
                place.token,
                place.module.display(),
                known.join(", ")
            ))
            .with_next_step("put the card in, or name another one with --token LABEL"))
        }
    }
}

fn library(module: &Path) -> Result<Pkcs11, Failure> {
    let failed = |error: Error| {
        Failure::new(format!("opening the PKCS#11 library {}: {error}", module.display()))
            .with_next_step("give the file that the token's maker names, as in --pkcs11 /usr/lib/….so")
    };
    let pkcs11 = Pkcs11::new(module).map_err(failed)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(failed)?;
    Ok(pkcs11)
}

fn login(place: &TokenPlace, session: &Session, pin: &str) -> Result<(), Failure> {
    session.login(UserType::User, Some(&AuthPin::new(pin.into()))).map_err(|error| {
        failed(place, "unlocking it", &error)
            .with_next_step("look at the PIN in --pin-file: a token locks itself after a few wrong ones")
    })
}

fn find(place: &TokenPlace, session: &Session, class: ObjectClass) -> Result<ObjectHandle, Error> {
    let template = [
        Attribute::Class(class),
        Attribute::KeyType(KeyType::EC_EDWARDS),
        Attribute::Label(place.object.clone().into_bytes()),
    ];
    let found = session.find_objects(&template)?;
    found.first().copied().ok_or(Error::NotSupported)
}

/// The key in a `CKA_EC_POINT`: an octet string in DER, or as it is.
fn public_key(point: &[u8]) -> Option<PublicKey> {
    let point = if point.len() == 34 { point.strip_prefix(&[0x04, 0x20])? } else { point };
    point.try_into().ok().map(PublicKey::from_bytes)
}
