//! Bank accounts as parties' documents hold them, and what makes them usable.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::kana::{self, Unwritable};
use super::latin::{self, NotLatin};
use crate::documents::is_date;

/// An account of either kind; `scheme` says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "scheme", rename_all = "lowercase")]
pub enum BankAccount {
    /// In Japan, in yen.
    Zengin(ZenginAccount),
    /// In the Single Euro Payments Area, in euro.
    Sepa(SepaAccount),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccountKind {
    /// 普通
    Ordinary,
    /// 当座
    Current,
    /// 貯蓄
    Savings,
}

/// An account at a Japanese bank. Names may be in any kana; files hold them half-width ([`kana`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ZenginAccount {
    /// 4 digits.
    pub bank_code: String,
    /// At most 15 bytes in half-width kana, as all names here; `holder` 30.
    pub bank_name: String,
    /// 3 digits.
    pub branch_code: String,
    pub branch_name: String,
    pub kind: AccountKind,
    /// 7 digits.
    pub number: String,
    pub holder: String,
    /// 10 digits that the bank gives to who orders transfers or debits; others have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consignor_code: Option<String>,
}

/// An account in the Single Euro Payments Area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SepaAccount {
    /// With or without spaces.
    pub iban: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bic: Option<String>,
    /// At most 70 Latin characters.
    pub holder: String,
    /// The holder's consent to debits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mandate: Option<Mandate>,
    /// Identifier of who collects debits; others have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creditor_id: Option<String>,
}

/// A SEPA direct debit mandate (core scheme).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mandate {
    /// At most 35 Latin characters.
    pub id: String,
    /// The day of the signature, `YYYY-MM-DD`.
    pub signed: String,
}

/// An account that no bank file can name: says which field, the bound and the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAccount {
    #[error("{field} {given:?} is not {rule}")]
    Form { field: &'static str, given: String, rule: &'static str },
    #[error("{field} takes {given} bytes in a bank file, it must take 1 to {max}: abbreviate it")]
    Width { field: &'static str, given: usize, max: usize },
    #[error("{field} {given:?}: {source}")]
    Kana { field: &'static str, given: String, source: Unwritable },
    #[error("{field} {given:?}: {source}")]
    Latin { field: &'static str, given: String, source: NotLatin },
}

impl BankAccount {
    pub fn check(&self) -> Result<(), InvalidAccount> {
        match self {
            Self::Zengin(account) => account.check(),
            Self::Sepa(account) => account.check(),
        }
    }
}

impl ZenginAccount {
    pub(super) const NAME_MAX: usize = 15;
    pub(super) const HOLDER_MAX: usize = 30;

    pub fn check(&self) -> Result<(), InvalidAccount> {
        digits("bank_code", &self.bank_code, 4, "4 digits")?;
        kana_field("bank_name", &self.bank_name, Self::NAME_MAX)?;
        digits("branch_code", &self.branch_code, 3, "3 digits")?;
        kana_field("branch_name", &self.branch_name, Self::NAME_MAX)?;
        digits("number", &self.number, 7, "7 digits: put zeros before a shorter number")?;
        kana_field("holder", &self.holder, Self::HOLDER_MAX)?;
        match &self.consignor_code {
            Some(code) => digits("consignor_code", code, 10, "10 digits"),
            None => Ok(()),
        }
    }
}

impl SepaAccount {
    const HOLDER_MAX: usize = 70;

    pub fn check(&self) -> Result<(), InvalidAccount> {
        let form =
            |field, given: &str, rule| Err(InvalidAccount::Form { field, given: given.to_owned(), rule });
        if !is_iban(&self.compact_iban()) {
            return form("iban", &self.iban, "an IBAN: country, check digits and account, without a slip");
        }
        if let Some(bic) = self.bic.as_ref().filter(|bic| !is_bic(bic)) {
            return form("bic", bic, "a BIC of 8 or 11 capital letters and digits");
        }
        let holder = latin::encode(&self.holder).map_err(|source| InvalidAccount::Latin {
            field: "holder",
            given: self.holder.clone(),
            source,
        })?;
        if !(1..=Self::HOLDER_MAX).contains(&holder.len()) {
            return Err(InvalidAccount::Width {
                field: "holder",
                given: holder.len(),
                max: Self::HOLDER_MAX,
            });
        }
        if let Some(mandate) = &self.mandate {
            if !latin::is_identifier(&mandate.id) {
                return form("mandate.id", &mandate.id, latin::IDENTIFIER_RULE);
            }
            if !is_date(&mandate.signed) {
                return form("mandate.signed", &mandate.signed, "a day as YYYY-MM-DD");
            }
        }
        match self.creditor_id.as_ref().filter(|id| !is_creditor_id(id)) {
            Some(id) => form("creditor_id", id, "a SEPA creditor identifier with right check digits"),
            None => Ok(()),
        }
    }

    /// The IBAN as machines write it.
    pub(super) fn compact_iban(&self) -> String {
        self.iban.chars().filter(|c| *c != ' ').collect()
    }
}

fn digits(field: &'static str, given: &str, count: usize, rule: &'static str) -> Result<(), InvalidAccount> {
    if given.len() == count && given.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(());
    }
    Err(InvalidAccount::Form { field, given: given.to_owned(), rule })
}

fn kana_field(field: &'static str, given: &str, max: usize) -> Result<(), InvalidAccount> {
    let bytes = kana::encode(given).map_err(|source| InvalidAccount::Kana {
        field,
        given: given.to_owned(),
        source,
    })?;
    if (1..=max).contains(&bytes.len()) {
        return Ok(());
    }
    Err(InvalidAccount::Width { field, given: bytes.len(), max })
}

/// ISO 13616: country, two check digits, 11 to 30 letters and digits.
fn is_iban(text: &str) -> bool {
    let well_formed = (15..=34).contains(&text.len()) && is_checked(text);
    well_formed && mod_97(text[4..].bytes().chain(text[..4].bytes())) == 1
}

/// As an IBAN, but the three characters after the check digits (of the holder's choice) do not count.
fn is_creditor_id(text: &str) -> bool {
    let well_formed = (8..=35).contains(&text.len()) && is_checked(text);
    well_formed && mod_97(text[7..].bytes().chain(text[..4].bytes())) == 1
}

/// Two letters, two digits, letters and digits; capital.
fn is_checked(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        && bytes[..2].iter().all(u8::is_ascii_uppercase)
        && bytes[2..4].iter().all(u8::is_ascii_digit)
}

/// ISO 7064: letters count as 10 to 35.
fn mod_97(characters: impl Iterator<Item = u8>) -> u32 {
    characters.fold(0, |rest, b| match b {
        b'0'..=b'9' => (rest * 10 + u32::from(b - b'0')) % 97,
        _ => (rest * 100 + u32::from(b - b'A') + 10) % 97,
    })
}

/// ISO 9362: bank and country in letters, place and perhaps branch in letters and digits.
fn is_bic(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 8 | 11)
        && bytes[..6].iter().all(u8::is_ascii_uppercase)
        && bytes[6..].iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn zengin() -> ZenginAccount {
        ZenginAccount {
            bank_code: "0001".into(),
            bank_name: "ミズホ".into(),
            branch_code: "005".into(),
            branch_name: "マルノウチチュウオウ".into(),
            kind: AccountKind::Ordinary,
            number: "0123456".into(),
            holder: "カ）ボブ".into(),
            consignor_code: None,
        }
    }

    pub(crate) fn sepa() -> SepaAccount {
        SepaAccount {
            iban: "DE89 3704 0044 0532 0130 00".into(),
            bic: Some("COBADEFFXXX".into()),
            holder: "Jürgen & Söhne GmbH".into(),
            mandate: Some(Mandate { id: "DOZO-BOB-1".into(), signed: "2026-01-31".into() }),
            creditor_id: Some("DE98ZZZ09999999999".into()),
        }
    }

    #[test]
    fn accounts_are_documents() {
        let account = BankAccount::Zengin(zengin());
        let json = serde_json::to_value(&account).unwrap();
        assert_eq!((&json["scheme"], &json["kind"]), (&"zengin".into(), &"ordinary".into()));
        assert_eq!(serde_json::from_value::<BankAccount>(json.clone()).unwrap(), account);
        let mut unknown = json;
        unknown["colour"] = "red".into();
        let error = serde_json::from_value::<BankAccount>(unknown).unwrap_err().to_string();
        assert!(error.contains("unknown field `colour`"), "{error}");
        let text = toml::to_string(&BankAccount::Sepa(sepa())).unwrap();
        assert_eq!(toml::from_str::<BankAccount>(&text).unwrap(), BankAccount::Sepa(sepa()));
        assert_eq!(BankAccount::Sepa(sepa()).check(), Ok(()));
        assert_eq!(account.check(), Ok(()));
    }

    #[test]
    fn a_japanese_account_names_the_field_that_is_wrong() {
        let refused = |change: &dyn Fn(&mut ZenginAccount)| {
            let mut account = zengin();
            change(&mut account);
            account.check().unwrap_err().to_string()
        };
        assert_eq!(refused(&|a| a.bank_code = "1".into()), "bank_code \"1\" is not 4 digits");
        assert_eq!(refused(&|a| a.branch_code = "12a".into()), "branch_code \"12a\" is not 3 digits");
        assert!(refused(&|a| a.number = "123456".into()).contains("put zeros before"));
        assert!(refused(&|a| a.consignor_code = Some("1".into())).starts_with("consignor_code \"1\""));
        assert!(refused(&|a| a.holder = "株式会社ボブ".into()).starts_with("holder \"株式会社ボブ\": '株'"));
        // 8 characters, 16 bytes: each voicing mark is one.
        let long = "bank_name takes 16 bytes in a bank file, it must take 1 to 15: abbreviate it";
        assert_eq!(refused(&|a| a.bank_name = "ガギグゲゴザジズ".into()), long);
        assert!(refused(&|a| a.branch_name = String::new()).starts_with("branch_name takes 0 bytes"));
    }

    #[test]
    fn a_sepa_account_names_the_field_that_is_wrong() {
        let refused = |change: &dyn Fn(&mut SepaAccount)| {
            let mut account = sepa();
            change(&mut account);
            account.check().unwrap_err().to_string()
        };
        for iban in ["DE89 3704 0044 0532 0130 01", "de89370400440532013000", "DE8", "", "JP12345678901234é"]
        {
            assert!(refused(&|a| a.iban = iban.into()).starts_with("iban "), "{iban}");
        }
        assert!(refused(&|a| a.bic = Some("COBADEF".into())).starts_with("bic \"COBADEF\""));
        assert!(refused(&|a| a.holder = "ボブ".into()).starts_with("holder \"ボブ\": 'ボ'"));
        assert!(refused(&|a| a.holder = "x".repeat(71)).starts_with("holder takes 71 bytes"));
        assert!(refused(&|a| a.mandate.as_mut().unwrap().id = "/x".into()).starts_with("mandate.id"));
        assert!(refused(&|a| a.mandate.as_mut().unwrap().signed = "x".into()).starts_with("mandate.signed"));
        assert!(refused(&|a| a.creditor_id = Some("DE97ZZZ09999999999".into())).starts_with("creditor_id"));
        for iban in
            ["FR1420041010050500013M02606", "GB29NWBK60161331926819", "MT84MALT011000012345MTLCAST001S"]
        {
            assert_eq!(SepaAccount { iban: iban.into(), ..sepa() }.check(), Ok(()), "{iban}");
        }
    }

    proptest! {
        #[test]
        fn an_iban_with_one_digit_changed_or_two_swapped_is_refused(at in 4usize..21, by in 1u8..10) {
            let iban = sepa().compact_iban();
            let mut changed = iban.clone().into_bytes();
            changed[at] = b'0' + (changed[at] - b'0' + by) % 10;
            prop_assert!(!is_iban(std::str::from_utf8(&changed).unwrap()));
            let mut swapped = iban.clone().into_bytes();
            swapped.swap(at, at + 1);
            prop_assert_eq!(is_iban(std::str::from_utf8(&swapped).unwrap()), swapped == iban.as_bytes());
        }

        #[test]
        fn no_text_makes_a_check_panic(text in ".{0,40}") {
            let _ = is_iban(&text);
            let _ = is_creditor_id(&text);
            let _ = is_bic(&text);
        }
    }
}
