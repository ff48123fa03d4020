//! The files of Japan's banks (Zengin format): 総合振込, transfers, and 預金口座振替, account debits.
//!
//! Records of 120 bytes in JIS X 0201: a header (`1`), a data record an order (`2`), a trailer (`8`) with count and
//! total, an end (`9`). Numbers are filled with zeros on the left, text with spaces on the right.
//!
//! | bytes | header | transfer | debit |
//! |---|---|---|---|
//! | 1 | `1` | `2` | `2` |
//! | 2-3 | kind, `21` or `91` | bank code 2-5 | bank code 2-5 |
//! | 4 | `0`, JIS | bank name 6-20 | bank name 6-20 |
//! | 5-14 | consignor code | branch code 21-23 | branch code 21-23 |
//! | 15-54 | consignor | branch name 24-38 | branch name 24-38 |
//! | 55-58 | day, MMDD | clearing house 39-42, blank | blank 39-42 |
//! | 59-62 | bank code | kind of account 43 | kind of account 43 |
//! | 63-77 | bank name | account number 44-50 | account number 44-50 |
//! | 78-80 | branch code | payee 51-80 | payer 51-80 |
//! | 81-95 | branch name | amount 81-90 | amount 81-90 |
//! | 96 | kind of account | new 91, `0` | new 91, `0` |
//! | 97-103 | account number | EDI 92-111: reference | customer number 92-111: reference |
//! | | | 112 blank, 113 `Y`: EDI | result 112, `0` in a request |
//!
//! Trailer: count 2-7, total 8-19; of debits also what was paid and what was not: 20-25, 26-37, 38-43, 44-55.

mod results;

use common::money::Currency;

pub use results::{DebitOutcome, DebitResult, DebitResults, InvalidResults, read_debit_results};

use super::account::{AccountKind, InvalidAccount, ZenginAccount};
use super::{BankFileError, Bounds, Order, checked_date, checked_total, kana};

const RECORD_LEN: usize = 120;
const REFERENCE_LEN: usize = 20;
const REFERENCE_RULE: &str = "1 to 20 of A-Z 0-9 space , . ( ) - /, without a space at its ends";
const BOUNDS: Bounds = Bounds {
    currency: Currency::Jpy,
    amount_max: 9_999_999_999,
    total_max: 999_999_999_999,
    count_max: 999_999,
};

/// What ends each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LineEnd {
    /// CR and LF, as most banks' web pages want it.
    #[default]
    CrLf,
    /// Nothing: records follow each other.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transfer,
    Debit,
}

/// A file of kind 21: pays each order from the consignor's account on `date` (`YYYY-MM-DD`).
pub fn transfers(
    consignor: &ZenginAccount,
    date: &str,
    orders: &[Order<ZenginAccount>],
    line_end: LineEnd,
) -> Result<Vec<u8>, BankFileError> {
    write(Kind::Transfer, consignor, date, orders, line_end)
}

/// A file of kind 91: collects each order to the consignor's account on `date` (`YYYY-MM-DD`). The bank answers with
/// the same file, results filled in: [`read_debit_results`].
pub fn debits(
    consignor: &ZenginAccount,
    date: &str,
    orders: &[Order<ZenginAccount>],
    line_end: LineEnd,
) -> Result<Vec<u8>, BankFileError> {
    write(Kind::Debit, consignor, date, orders, line_end)
}

fn write(
    kind: Kind,
    consignor: &ZenginAccount,
    date: &str,
    orders: &[Order<ZenginAccount>],
    line_end: LineEnd,
) -> Result<Vec<u8>, BankFileError> {
    checked_date("date", date)?;
    let total = checked_total(orders, &BOUNDS)?;
    let mut records = vec![header(kind, consignor, date)?];
    for order in orders {
        records.push(data(kind, order)?);
    }
    let mut trailer = Record::new(b'8');
    trailer.number(orders.len() as u64, 6);
    trailer.number(total.unsigned_abs(), 12);
    if kind == Kind::Debit {
        trailer.number(0, 6 + 12 + 6 + 12);
    }
    records.push(trailer);
    records.push(Record::new(b'9'));

    let mut file = Vec::with_capacity(records.len() * (RECORD_LEN + 2));
    for record in records {
        file.extend_from_slice(&record.bytes);
        if line_end == LineEnd::CrLf {
            file.extend_from_slice(b"\r\n");
        }
    }
    Ok(file)
}

fn header(kind: Kind, consignor: &ZenginAccount, date: &str) -> Result<Record, BankFileError> {
    consignor.check().map_err(BankFileError::Originator)?;
    if consignor.kind == AccountKind::Savings {
        let rule = "ordinary or current, as a consignor's account must be";
        let given = "savings".into();
        return Err(BankFileError::Originator(InvalidAccount::Form { field: "kind", given, rule }));
    }
    let code = consignor
        .consignor_code
        .as_ref()
        .ok_or(BankFileError::OriginatorLacks { field: "consignor_code" })?;
    let name = |text: &str| kana_bytes(text).map_err(BankFileError::Originator);
    let mut record = Record::new(b'1');
    record.digits(match kind {
        Kind::Transfer => "21",
        Kind::Debit => "91",
    });
    record.digits("0");
    record.digits(code);
    record.text(&name(&consignor.holder)?, 40);
    record.digits(&date[5..7]);
    record.digits(&date[8..10]);
    record.digits(&consignor.bank_code);
    record.text(&name(&consignor.bank_name)?, ZenginAccount::NAME_MAX);
    record.digits(&consignor.branch_code);
    record.text(&name(&consignor.branch_name)?, ZenginAccount::NAME_MAX);
    record.digits(account_kind(consignor.kind));
    record.digits(&consignor.number);
    Ok(record)
}

fn data(kind: Kind, order: &Order<ZenginAccount>) -> Result<Record, BankFileError> {
    let account = &order.account;
    let wrong = |source| BankFileError::Account { reference: order.reference.clone(), source };
    let name = |text: &str| kana_bytes(text).map_err(wrong);
    account.check().map_err(wrong)?;
    if kind == Kind::Debit && account.kind == AccountKind::Savings {
        return Err(BankFileError::Savings { reference: order.reference.clone() });
    }
    if !is_reference(&order.reference) {
        let (given, rule) = (order.reference.clone(), REFERENCE_RULE);
        return Err(BankFileError::Identifier { what: "reference", given, rule });
    }
    let mut record = Record::new(b'2');
    record.digits(&account.bank_code);
    record.text(&name(&account.bank_name)?, ZenginAccount::NAME_MAX);
    record.digits(&account.branch_code);
    record.text(&name(&account.branch_name)?, ZenginAccount::NAME_MAX);
    record.text(b"", 4);
    record.digits(account_kind(account.kind));
    record.digits(&account.number);
    record.text(&name(&account.holder)?, ZenginAccount::HOLDER_MAX);
    record.number(order.amount_minor.unsigned_abs(), 10);
    record.digits("0");
    record.text(order.reference.as_bytes(), REFERENCE_LEN);
    match kind {
        Kind::Transfer => record.text(b" Y", 2),
        Kind::Debit => record.digits("0"),
    }
    Ok(record)
}

/// Written as it is, so that it is found again as it was.
fn is_reference(text: &str) -> bool {
    let accepted = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase() || b" ,.()-/".contains(&b);
    (1..=REFERENCE_LEN).contains(&text.len()) && text.bytes().all(accepted) && text.trim() == text
}

fn account_kind(kind: AccountKind) -> &'static str {
    match kind {
        AccountKind::Ordinary => "1",
        AccountKind::Current => "2",
        AccountKind::Savings => "4",
    }
}

fn kana_bytes(text: &str) -> Result<Vec<u8>, InvalidAccount> {
    kana::encode(text).map_err(|source| InvalidAccount::Kana {
        field: "name",
        given: text.to_owned(),
        source,
    })
}

/// A record, filled from the left; what is never filled stays blank.
struct Record {
    bytes: [u8; RECORD_LEN],
    filled: usize,
}

impl Record {
    fn new(tag: u8) -> Self {
        let mut bytes = [b' '; RECORD_LEN];
        bytes[0] = tag;
        Self { bytes, filled: 1 }
    }

    fn digits(&mut self, digits: &str) {
        self.text(digits.as_bytes(), digits.len());
    }

    /// `number` must have at most `width` digits.
    fn number(&mut self, number: u64, width: usize) {
        self.digits(&format!("{number:0width$}"));
    }

    /// `text` must have at most `width` bytes.
    fn text(&mut self, text: &[u8], width: usize) {
        self.bytes[self.filled..self.filled + text.len()].copy_from_slice(text);
        self.filled += width;
    }
}

#[cfg(test)]
mod tests {
    use super::super::account::tests::zengin;
    use super::*;

    pub(super) fn consignor() -> ZenginAccount {
        ZenginAccount {
            holder: "カ）ドーゾ".into(),
            consignor_code: Some("1234567890".into()),
            kind: AccountKind::Current,
            ..zengin()
        }
    }

    pub(super) fn order(reference: &str, amount_minor: i64) -> Order<ZenginAccount> {
        Order { reference: reference.into(), account: zengin(), currency: Currency::Jpy, amount_minor }
    }

    #[test]
    fn a_transfer_file_byte_for_byte() {
        let orders = [order("SP-0000001", 1_234), order("SP-0000002", 9_999_999_999)];
        let file = transfers(&consignor(), "2026-11-30", &orders, LineEnd::CrLf).unwrap();
        let text = kana::decode(&file.iter().copied().filter(|b| *b != b'\r').collect::<Vec<_>>());
        let lines: Vec<&str> = text.split('\u{fffd}').collect();
        let account = |kind| format!("0001ﾐｽﾞﾎ           005ﾏﾙﾉｳﾁﾁﾕｳｵｳ     {kind}");
        let expected = [
            format!("12101234567890{:<40}1130{}0123456{:17}", "ｶ)ﾄﾞ-ｿﾞ", account("2"), ""),
            format!("2{}10123456{:<30}00000012340{:<20} Y{:7}", account("    "), "ｶ)ﾎﾞﾌﾞ", "SP-0000001", ""),
            format!("2{}10123456{:<30}99999999990{:<20} Y{:7}", account("    "), "ｶ)ﾎﾞﾌﾞ", "SP-0000002", ""),
            format!("8000002010000001233{:101}", ""),
            format!("9{:119}", ""),
            String::new(),
        ];
        assert_eq!(lines, expected);
        assert!(file.chunks(RECORD_LEN + 2).all(|record| record.ends_with(b"\r\n")));
    }

    #[test]
    fn a_debit_file_asks_for_results() {
        let file = debits(&consignor(), "2026-12-27", &[order("S-0000012", 237)], LineEnd::None).unwrap();
        assert_eq!(file.len(), 4 * RECORD_LEN);
        let text = kana::decode(&file);
        let records: Vec<String> =
            text.chars().collect::<Vec<_>>().chunks(RECORD_LEN).map(|r| r.iter().collect()).collect();
        assert!(records[0].starts_with("19101234567890"));
        assert_eq!(
            records[1].chars().skip(80).collect::<String>(),
            "00000002370S-0000012           0        "
        );
        assert_eq!(records[2], format!("8000001000000000237{}{:65}", "0".repeat(36), ""));
    }

    #[test]
    fn orders_that_the_format_cannot_hold_are_refused() {
        let refused = |consignor: &ZenginAccount, order: Order<ZenginAccount>| {
            debits(consignor, "2026-12-27", &[order], LineEnd::CrLf).unwrap_err().to_string()
        };
        let fine = || order("S-1", 1);
        assert!(refused(&zengin(), fine()).starts_with("the ordering party's account has no consignor_code"));
        let savings = ZenginAccount { kind: AccountKind::Savings, ..consignor() };
        assert!(refused(&savings, fine()).contains("kind \"savings\" is not ordinary or current"));
        let mut from_savings = fine();
        from_savings.account.kind = AccountKind::Savings;
        assert_eq!(refused(&consignor(), from_savings), "order S-1: a savings account cannot be debited");
        let mut wrong = fine();
        wrong.account.number = "1".into();
        assert!(refused(&consignor(), wrong).starts_with("order S-1: number \"1\" is not 7 digits"));
        let mut wallet = fine();
        wallet.currency = Currency::Xdz;
        assert_eq!(refused(&consignor(), wallet), "order S-1 is in XDZ, the file takes JPY alone");
        assert_eq!(
            refused(&consignor(), order("S-1", 10_000_000_000)),
            "order S-1: the amount 10000000000 is not between 1 and 9999999999 minor units"
        );
        for reference in ["", "s-1", " S-1", "S-12345678901234567890", "ｱ"] {
            assert!(refused(&consignor(), order(reference, 1)).starts_with("reference "), "{reference}");
        }
        let error = transfers(&consignor(), "2026-02-30", &[fine()], LineEnd::CrLf).unwrap_err();
        assert_eq!(error.to_string(), "date \"2026-02-30\" is not a day as YYYY-MM-DD");
        let many: Vec<_> = (0..101).map(|n| order(&format!("S-{n}"), 9_999_999_999)).collect();
        let error = transfers(&consignor(), "2026-11-30", &many, LineEnd::CrLf).unwrap_err();
        assert!(error.to_string().ends_with("a file holds at most 999999999999: make several"));
    }
}
