//! What came of account debits: the bank's answer to a file of kind 91.
//!
//! The file is believed only if all of it holds together: whole records in their order, our consignor code, counts
//! and sums of all, of the paid and of the unpaid. Our own request is not taken for an answer.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::kana;
use super::RECORD_LEN;

/// Result codes of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DebitOutcome {
    /// 0
    Paid,
    /// 1
    InsufficientFunds,
    /// 2
    NoAccount,
    /// 3: the payer asked its bank not to pay.
    Refused,
    /// 4
    NoMandate,
    /// 8: we asked the bank not to collect.
    StoppedByConsignor,
    /// 9
    Other,
}

impl DebitOutcome {
    fn of(code: u8) -> Option<Self> {
        Some(match code {
            b'0' => Self::Paid,
            b'1' => Self::InsufficientFunds,
            b'2' => Self::NoAccount,
            b'3' => Self::Refused,
            b'4' => Self::NoMandate,
            b'8' => Self::StoppedByConsignor,
            b'9' => Self::Other,
            _ => return None,
        })
    }
}

/// What came of one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebitResult {
    /// As in the request: the invoice's number.
    pub reference: String,
    /// Yen.
    pub amount_minor: i64,
    pub outcome: DebitOutcome,
    /// As the bank has it, in half-width kana.
    pub holder: String,
}

/// A result file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebitResults {
    /// Day of the collection, `MM-DD`: the format has no year.
    pub day: String,
    pub results: Vec<DebitResult>,
    /// Yen.
    pub paid_minor: i64,
    /// Yen.
    pub unpaid_minor: i64,
}

/// A file that is not the bank's answer to our request: says where and why. Nothing of it was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidResults {
    #[error("record {record} has {len} bytes, each has 120: the file is cut off or of another format")]
    Length { record: usize, len: usize },
    #[error("record {record}, bytes {from}-{to} ({field}): {reason}")]
    Field { record: usize, from: usize, to: usize, field: &'static str, reason: String },
    #[error("the file ends after record {record}, without trailer and end: it is cut off")]
    CutOff { record: usize },
    #[error("record {record} follows the end record")]
    AfterEnd { record: usize },
    #[error(
        "all records say paid and the trailer sums up nothing: this is a request, or an unfinished result"
    )]
    Request,
    #[error("record {record}: the reference {reference:?} comes a second time")]
    Twice { record: usize, reference: String },
}

/// Reads a result file of kind 91. Records may be followed by CR LF, LF or nothing; `consignor_code` is that of
/// the request.
pub fn read_debit_results(bytes: &[u8], consignor_code: &str) -> Result<DebitResults, InvalidResults> {
    let records = split(bytes)?;
    let mut records =
        records.into_iter().enumerate().map(|(index, bytes)| Record { number: index + 1, bytes });
    let cut_off = |record| InvalidResults::CutOff { record };

    let header = records.next().ok_or(cut_off(0))?;
    header.expect("record kind", 1, "1")?;
    header.expect("file kind", 2, "91")?;
    header.expect("character code", 4, "0")?;
    header.expect("consignor code", 5, consignor_code)?;
    let day = header.digits("day", 55, 58)?;

    let mut results: Vec<DebitResult> = Vec::new();
    let mut references = std::collections::HashSet::new();
    let trailer = loop {
        let record = records.next().ok_or(cut_off(results.len() + 1))?;
        match record.bytes[0] {
            b'2' => {
                let result = read_result(&record)?;
                if !references.insert(result.reference.clone()) {
                    let reference = result.reference;
                    return Err(InvalidResults::Twice { record: record.number, reference });
                }
                results.push(result);
            }
            b'8' => break record,
            _ => return Err(record.fault("record kind", 1, 1, "neither data (2) nor trailer (8)")),
        }
    };
    let (paid_minor, unpaid_minor) = check_sums(&trailer, &results)?;
    let end = records.next().ok_or(cut_off(trailer.number))?;
    end.expect("record kind", 1, "9")?;
    match records.next() {
        Some(record) => Err(InvalidResults::AfterEnd { record: record.number }),
        None => {
            let day = format!("{}-{}", &day[..2], &day[2..]);
            Ok(DebitResults { day, results, paid_minor, unpaid_minor })
        }
    }
}

fn read_result(record: &Record<'_>) -> Result<DebitResult, InvalidResults> {
    let amount_minor = record.number("amount", 81, 90)?;
    let reference = kana::decode(&record.bytes[91..111]).trim_end().to_owned();
    if reference.is_empty() {
        return Err(record.fault("customer number", 92, 111, "blank: we never ask without a reference"));
    }
    let outcome = DebitOutcome::of(record.bytes[111])
        .ok_or_else(|| record.fault("result", 112, 112, "none of the codes 0, 1, 2, 3, 4, 8, 9"))?;
    let holder = kana::decode(&record.bytes[50..80]).trim_end().to_owned();
    Ok(DebitResult { reference, amount_minor, outcome, holder })
}

/// The paid and the unpaid sum. Some banks leave them out of the trailer; the sum of all is always there.
fn check_sums(trailer: &Record<'_>, results: &[DebitResult]) -> Result<(i64, i64), InvalidResults> {
    let sums = |paid: bool| {
        let of = results.iter().filter(|result| (result.outcome == DebitOutcome::Paid) == paid);
        // At most 10^6 records (the trailer's count is checked first) of less than 10^10.
        of.fold((0, 0), |(count, sum): (i64, i64), result| (count + 1, sum + result.amount_minor))
    };
    trailer.expect_number("count", 2, 7, results.len() as i64)?;
    let (paid, unpaid) = (sums(true), sums(false));
    trailer.expect_number("total", 8, 19, paid.1 + unpaid.1)?;
    if trailer.number("sums of results", 20, 55).is_ok_and(|sums| sums == 0) || trailer.is_blank(20, 55) {
        return if unpaid.0 == 0 && paid.0 > 0 {
            Err(InvalidResults::Request)
        } else {
            Ok((paid.1, unpaid.1))
        };
    }
    trailer.expect_number("paid count", 20, 25, paid.0)?;
    trailer.expect_number("paid total", 26, 37, paid.1)?;
    trailer.expect_number("unpaid count", 38, 43, unpaid.0)?;
    trailer.expect_number("unpaid total", 44, 55, unpaid.1)?;
    Ok((paid.1, unpaid.1))
}

fn split(bytes: &[u8]) -> Result<Vec<&[u8]>, InvalidResults> {
    let bytes = bytes.strip_suffix(b"\x1a").unwrap_or(bytes);
    let records: Vec<&[u8]> = if bytes.contains(&b'\n') {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        bytes.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect()
    } else {
        bytes.chunks(RECORD_LEN).collect()
    };
    match records.iter().position(|record| record.len() != RECORD_LEN) {
        Some(index) => Err(InvalidResults::Length { record: index + 1, len: records[index].len() }),
        None => Ok(records),
    }
}

/// A record of the file; bytes count from 1, as in the banks' tables.
struct Record<'a> {
    number: usize,
    bytes: &'a [u8],
}

impl Record<'_> {
    fn fault(
        &self,
        field: &'static str,
        from: usize,
        to: usize,
        reason: impl Into<String>,
    ) -> InvalidResults {
        InvalidResults::Field { record: self.number, from, to, field, reason: reason.into() }
    }

    fn expect(&self, field: &'static str, from: usize, expected: &str) -> Result<(), InvalidResults> {
        let to = from + expected.len() - 1;
        let given = &self.bytes[from - 1..to];
        if given == expected.as_bytes() {
            return Ok(());
        }
        Err(self.fault(field, from, to, format!("{:?}, expected {expected:?}", kana::decode(given))))
    }

    fn is_blank(&self, from: usize, to: usize) -> bool {
        self.bytes[from - 1..to].iter().all(|b| *b == b' ')
    }

    fn digits(&self, field: &'static str, from: usize, to: usize) -> Result<&str, InvalidResults> {
        let given = &self.bytes[from - 1..to];
        let digits = given.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(given).ok()).flatten();
        digits.ok_or_else(|| {
            self.fault(field, from, to, format!("{:?} is not all digits", kana::decode(given)))
        })
    }

    fn number(&self, field: &'static str, from: usize, to: usize) -> Result<i64, InvalidResults> {
        let digits = self.digits(field, from, to)?;
        digits.parse().map_err(|_| self.fault(field, from, to, "too great a number"))
    }

    fn expect_number(
        &self,
        field: &'static str,
        from: usize,
        to: usize,
        expected: i64,
    ) -> Result<(), InvalidResults> {
        let given = self.number(field, from, to)?;
        if given == expected {
            return Ok(());
        }
        Err(self.fault(field, from, to, format!("{given}, but the data records make {expected}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{consignor, order};
    use super::super::{LineEnd, debits};
    use super::*;

    const CODE: &str = "1234567890";

    fn request(line_end: LineEnd) -> Vec<u8> {
        let orders = [order("S-0000012", 237), order("S-0000013", 1_000), order("S-0000014", 50)];
        debits(&consignor(), "2026-12-27", &orders, line_end).unwrap()
    }

    /// What a bank makes of [`request`]: these result codes and the sums.
    fn answered(codes: &str) -> Vec<u8> {
        let mut file = request(LineEnd::None);
        let (mut paid, mut unpaid) = ((0, 0), (0, 0));
        for ((index, code), amount) in codes.bytes().enumerate().zip([237, 1_000, 50]) {
            file[(index + 1) * RECORD_LEN + 111] = code;
            let sum = if code == b'0' { &mut paid } else { &mut unpaid };
            *sum = (sum.0 + 1, sum.1 + amount);
        }
        let sums = format!("{:06}{:012}{:06}{:012}", paid.0, paid.1, unpaid.0, unpaid.1);
        file[4 * RECORD_LEN + 19..][..36].copy_from_slice(sums.as_bytes());
        file
    }

    fn refused(file: &[u8]) -> String {
        read_debit_results(file, CODE).unwrap_err().to_string()
    }

    #[test]
    fn results_are_found_by_our_references() {
        let results = read_debit_results(&answered("018"), CODE).unwrap();
        assert_eq!((results.day.as_str(), results.paid_minor, results.unpaid_minor), ("12-27", 237, 1_050));
        let outcomes: Vec<_> = results.results.iter().map(|r| (r.reference.as_str(), r.outcome)).collect();
        assert_eq!(
            outcomes,
            [
                ("S-0000012", DebitOutcome::Paid),
                ("S-0000013", DebitOutcome::InsufficientFunds),
                ("S-0000014", DebitOutcome::StoppedByConsignor),
            ]
        );
        assert_eq!(results.results[0].holder, "ｶ)ﾎﾞﾌﾞ");
        assert_eq!(read_debit_results(&answered("000"), CODE).unwrap().unpaid_minor, 0);
        let json = serde_json::to_value(&results).unwrap();
        assert_eq!(json["results"][1]["outcome"], "insufficient_funds");
    }

    #[test]
    fn every_way_to_end_lines_is_read() {
        let plain = answered("023");
        let expected = read_debit_results(&plain, CODE).unwrap();
        for (line_end, file_end) in [("\r\n", ""), ("\n", ""), ("\r\n", "\x1a"), ("", "\x1a")] {
            let mut file = Vec::new();
            for record in plain.chunks(RECORD_LEN) {
                file.extend_from_slice(record);
                file.extend_from_slice(line_end.as_bytes());
            }
            file.extend_from_slice(file_end.as_bytes());
            assert_eq!(read_debit_results(&file, CODE), Ok(expected.clone()), "{line_end:?} {file_end:?}");
        }
    }

    #[test]
    fn sums_of_results_may_be_left_out_unless_all_is_paid() {
        let mut file = answered("010");
        let sums = 4 * RECORD_LEN + 19;
        file[sums..sums + 36].fill(b'0');
        assert_eq!(read_debit_results(&file, CODE).unwrap().unpaid_minor, 1_000);
        file[sums..sums + 36].fill(b' ');
        assert_eq!(read_debit_results(&file, CODE).unwrap().unpaid_minor, 1_000);
        assert!(refused(&request(LineEnd::CrLf)).starts_with("all records say paid"));
    }

    #[test]
    fn files_that_do_not_hold_together_are_refused_with_the_place() {
        let sound = answered("010");
        let changed = |at: usize, to: &str| {
            let mut file = sound.clone();
            file[at..at + to.len()].copy_from_slice(to.as_bytes());
            refused(&file)
        };
        let record = |n: usize| (n - 1) * RECORD_LEN;
        assert_eq!(
            changed(4, "0987654321"),
            "record 1, bytes 5-14 (consignor code): \"0987654321\", expected \"1234567890\""
        );
        assert_eq!(changed(1, "21"), "record 1, bytes 2-3 (file kind): \"21\", expected \"91\"");
        assert_eq!(changed(3, "1"), "record 1, bytes 4-4 (character code): \"1\", expected \"0\"");
        assert_eq!(
            changed(record(3) + 111, "7"),
            "record 3, bytes 112-112 (result): none of the codes 0, 1, 2, 3, 4, 8, 9"
        );
        assert!(changed(record(3) + 80, "          ").starts_with("record 3, bytes 81-90 (amount): "));
        assert_eq!(
            changed(record(3) + 80, "0000001001"),
            "record 5, bytes 8-19 (total): 1287, but the data records make 1288"
        );
        assert_eq!(
            changed(record(3) + 111, "0"),
            "record 5, bytes 20-25 (paid count): 2, but the data records make 3"
        );
        assert!(changed(record(5) + 1, "000004").ends_with("(count): 4, but the data records make 3"));
        assert!(changed(record(3) + 91, &" ".repeat(20)).contains("(customer number): blank"));
        assert_eq!(
            changed(record(3) + 91, "S-0000012"),
            "record 3: the reference \"S-0000012\" comes a second time"
        );
        assert!(changed(record(3), "5").starts_with("record 3, bytes 1-1 (record kind): neither"));
        assert!(changed(record(6), "8").starts_with("record 6, bytes 1-1 (record kind): \"8\""));

        assert_eq!(refused(b""), "the file ends after record 0, without trailer and end: it is cut off");
        assert!(refused(&sound[..record(4)]).starts_with("the file ends after record 3"));
        assert!(refused(&sound[..record(6)]).starts_with("the file ends after record 5"));
        assert!(refused(&sound[..record(4) + 7]).starts_with("record 4 has 7 bytes"));
        assert_eq!(refused(&[sound.as_slice(), &sound].concat()), "record 7 follows the end record");
        assert!(refused(b"<html>\n</html>\n").starts_with("record 1 has 6 bytes"));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic_and_no_changed_digit_goes_unseen(
            at in 0usize..6 * RECORD_LEN, to in any::<u8>(), cut in 0usize..6 * RECORD_LEN,
        ) {
            let sound = answered("010");
            let expected = read_debit_results(&sound, CODE).unwrap();
            let mut file = sound.clone();
            file[at] = to;
            if let Ok(read) = read_debit_results(&file, CODE) {
                let amounts = |r: &DebitResults| -> Vec<_> { r.results.iter().map(|r| (r.amount_minor, r.outcome)).collect() };
                let same_code = |o: &DebitOutcome| *o == DebitOutcome::Paid;
                for (read, expected) in amounts(&read).iter().zip(amounts(&expected)) {
                    prop_assert_eq!(read.0, expected.0);
                    prop_assert_eq!(same_code(&read.1), same_code(&expected.1));
                }
            }
            prop_assert!(read_debit_results(&sound[..cut], CODE).is_err());
        }
    }
}
