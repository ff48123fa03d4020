//! Bank files, as other programs read them.

use billing::bank::sepa::{Message, credit_transfers, direct_debits};
use billing::bank::zengin::{DebitOutcome, LineEnd, debits, read_debit_results, transfers};
use billing::bank::{Order, SepaAccount, ZenginAccount};
use common::money::Currency;
use common::time::UnixMillis;
use serde_json::{from_value, json};
use tempfile::TempDir;

use crate::checkers::Checkers;
use crate::e_invoices::store;

fn consignor() -> ZenginAccount {
    from_value(json!({
        "bank_code": "0001", "bank_name": "ミズホ", "branch_code": "005", "branch_name": "ﾏﾙﾉｳﾁﾁｭｳｵｳ",
        "kind": "current", "number": "7654321", "holder": "カ）ドーゾ・デリバリー", "consignor_code": "1234567890",
    }))
    .unwrap()
}

fn yen_order(reference: &str, amount_minor: i64) -> Order<ZenginAccount> {
    let account = from_value(json!({
        "bank_code": "0310", "bank_name": "ジーエムオーアオゾラ", "branch_code": "101", "branch_name": "ホウジン",
        "kind": "ordinary", "number": "0000012", "holder": "かぶしきがいしゃぼぶ",
    }))
    .unwrap();
    Order { reference: reference.into(), account, currency: Currency::Jpy, amount_minor }
}

#[test]
fn another_program_reads_transfers_as_they_were_meant() {
    let Some(checkers) = Checkers::find() else { return };
    let folder = TempDir::new().unwrap();
    let orders = [yen_order("SP-0000001", 1_234), yen_order("SP-0000002", 9_999_999_999)];
    for line_end in [LineEnd::CrLf, LineEnd::None] {
        let bytes = transfers(&consignor(), "2026-11-30", &orders, line_end).unwrap();
        let file = checkers.zengin("general-transfer", &store(&folder, "transfers", &bytes)).unwrap();
        assert_eq!(
            file["header"],
            json!({
                "kind_code": 21, "code_division": 0, "remitter_code": "1234567890",
                "remitter_name": "ｶ)ﾄﾞ-ｿﾞ.ﾃﾞﾘﾊﾞﾘ-", "transfer_date": "1130", "bank_code": "0001",
                "bank_name": "ﾐｽﾞﾎ", "branch_code": "005", "branch_name": "ﾏﾙﾉｳﾁﾁﾕｳｵｳ", "account_type": 2,
                "account_number": "7654321",
            })
        );
        let order = &file["details"][1];
        for (field, value) in [
            ("bank_code", json!("0310")),
            ("bank_name", json!("ｼﾞ-ｴﾑｵ-ｱｵｿﾞﾗ")),
            ("branch_code", json!("101")),
            ("account_type", json!(1)),
            ("account_number", json!("0000012")),
            ("recipient_name", json!("ｶﾌﾞｼｷｶﾞｲｼﾔﾎﾞﾌﾞ")),
            ("amount", json!(9_999_999_999i64)),
            ("edi_info", json!("SP-0000002")),
            ("identification", json!("Y")),
        ] {
            assert_eq!(order[field], value, "{field} of {order}");
        }
        assert_eq!(file["trailer"], json!({"total_count": 2, "total_amount": 10_000_001_233i64}));
    }
}

#[test]
fn another_program_reads_debits_and_their_results_as_we_do() {
    let Some(checkers) = Checkers::find() else { return };
    let folder = TempDir::new().unwrap();
    let orders = [yen_order("S-0000012", 237), yen_order("S-0000013", 1_000)];
    let mut bytes = debits(&consignor(), "2026-12-27", &orders, LineEnd::CrLf).unwrap();
    let file = checkers.zengin("request", &store(&folder, "request", &bytes)).unwrap();
    assert_eq!(file["header"]["kind_code"], 91);
    assert_eq!(file["details"][0]["customer_number"], "S-0000012");
    assert_eq!(file["details"][0]["payer_name"], "ｶﾌﾞｼｷｶﾞｲｼﾔﾎﾞﾌﾞ");
    assert_eq!(file["trailer"], json!({"record_count": 2, "total_amount": 1_237}));

    // The bank's answer: the second payer had not enough.
    bytes[2 * 122 + 111] = b'1';
    bytes[3 * 122 + 19..][..36].copy_from_slice(b"000001000000000237000001000000001000");
    let file = checkers.zengin("result", &store(&folder, "result", &bytes)).unwrap();
    let ours = read_debit_results(&bytes, "1234567890").unwrap();
    assert_eq!((ours.paid_minor, ours.unpaid_minor), (237, 1_000));
    assert_eq!(ours.results[1].outcome, DebitOutcome::InsufficientFunds);
    for (ours, theirs) in ours.results.iter().zip(file["details"].as_array().unwrap()) {
        assert_eq!(theirs["customer_number"], ours.reference.as_str());
        assert_eq!(theirs["amount"], ours.amount_minor);
        assert_eq!(theirs["account_holder_name"], ours.holder.as_str());
    }

    // Both refuse sums that are not those of the records.
    bytes[3 * 122 + 36] = b'8';
    assert!(read_debit_results(&bytes, "1234567890").is_err());
    assert!(
        checkers.zengin("result", &store(&folder, "result", &bytes)).unwrap_err().contains("success_amount")
    );
}

#[test]
fn sepa_files_keep_the_schemas_of_iso_20022() {
    let Some(checkers) = Checkers::find() else { return };
    let folder = TempDir::new().unwrap();
    let creditor: SepaAccount = from_value(json!({
        "iban": "FR14 2004 1010 0505 0001 3M02 606", "bic": "PSSTFRPPPAR", "holder": "Dōzo Livraison SARL",
        "creditor_id": "DE98ZZZ09999999999",
    }))
    .unwrap();
    let order = |reference: &str, bic, amount_minor| {
        let account = from_value(json!({
            "iban": "DE89370400440532013000", "bic": bic, "holder": "Jürgen & Söhne <GmbH>",
            "mandate": {"id": "DOZO-BOB-1", "signed": "2026-01-31"},
        }))
        .unwrap();
        Order { reference: reference.into(), account, currency: Currency::Eur, amount_minor }
    };
    let orders = [
        order("S-0000012", Some("COBADEFF"), 1),
        order("S-0000013", None, 99_999_999_999),
        order("S-0000014", Some("COBADEFFXXX"), 123_456),
    ];
    let message =
        Message { id: "DOZO-2026-10-1", created: UnixMillis(1_793_545_200_000), date: "2026-11-30" };
    let file = credit_transfers(message, &creditor, &orders).unwrap();
    checkers.sepa("pain.001.001.09", &[store(&folder, "transfers.xml", &file)]);
    let file = direct_debits(message, &creditor, &orders).unwrap();
    checkers.sepa("pain.008.001.08", &[store(&folder, "debits.xml", &file)]);
}
