//! E-invoices by the rules of EN 16931. The documents come as the JSON that the ledger stores.

use std::path::PathBuf;

use billing::documents::{Invoice, ubl};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkers::Checkers;

/// Lines of 124.691 and 90.809 yen, the second of them late; 216 net, 21 tax.
fn japanese() -> Value {
    json!({
        "number": "S-0000012", "kind": "invoice", "fee": "service", "client": "bob", "period": "2026-10",
        "issuer": {
            "party": "billing:service", "name": "Dozo Delivery K.K.", "country": "JP",
            "address": "1-1 Chiyoda\nTokyo\nBuilding 7\n3rd floor", "registration_number": "T1234567890123",
            "email": "billing@example.com",
        },
        "customer": {
            "party": "client:bob", "name": "ボブ & <Sons> \"Ltd\"", "country": "JP",
            "registration_number": "T9999999999999",
        },
        "currency": "JPY", "issued_ms": 1_793_545_200_000u64, "issue_date": "2026-11-02",
        "due_date": "2026-11-30", "period_begin": "2026-10-01", "period_end": "2026-10-31",
        "lines": [
            {"usage_period": "2026-10", "late": false, "kind": "usage", "class": "purchase", "path": "hit",
             "deliveries": 1200, "bytes_sent": 3_400_000_000u64, "amount_micros": 124_691_000},
            {"usage_period": "2026-09", "late": true, "kind": "usage", "class": "reference", "path": "peer",
             "deliveries": 7, "bytes_sent": 1, "amount_micros": 90_809_000},
        ],
        "charges_micros": 215_500_000, "net_minor": 216, "rounding_micros": 500_000,
        "tax_basis_points": 1000, "tax_minor": 21, "total_minor": 237,
    })
}

/// With a discount and a correction without deliveries; 1,234.56 euro and a third of a cent, 19 %.
fn european() -> Value {
    let mut document = japanese();
    document["issuer"] = json!({
        "party": "billing:content", "name": "Dōzo GmbH", "country": "DE", "registration_number": "DE123456789",
    });
    document["customer"] = json!({
        "party": "client:carol", "name": "Carol SARL", "country": "FR", "registration_number": "FR83404833048",
        "email": "carol@example.com",
    });
    document["fee"] = "content".into();
    document["currency"] = "EUR".into();
    document["lines"] = json!([
        {"usage_period": "2026-10", "late": false, "kind": "usage", "class": "purchase", "path": "origin",
         "deliveries": 3, "bytes_sent": 10, "amount_micros": 133_456_333_333i64},
        {"usage_period": "2026-10", "late": false, "kind": "discount",
         "deliveries": 0, "bytes_sent": 0, "amount_micros": -10_000_000_000i64},
        {"usage_period": "2026-08", "late": false, "kind": "correction", "class": "reference", "path": "hit",
         "deliveries": 5, "bytes_sent": 0, "amount_micros": 0},
    ]);
    for (field, value) in [
        ("charges_micros", 123_456_333_333i64),
        ("net_minor", 123_456),
        ("rounding_micros", -333_333),
        ("tax_basis_points", 1900),
        ("tax_minor", 23_456),
        ("total_minor", 146_912),
    ] {
        document[field] = value.into();
    }
    document
}

fn credit_note(mut document: Value) -> Value {
    document["kind"] = json!({"credit_note": {"of": document["number"]}});
    document["number"] = "S-0000013".into();
    document["due_date"] = Value::Null;
    document
}

fn without_tax(mut document: Value, registered: bool) -> Value {
    document["tax_basis_points"] = 0.into();
    document["tax_minor"] = 0.into();
    document["total_minor"] = document["net_minor"].clone();
    if !registered {
        document["issuer"]["registration_number"] = Value::Null;
    }
    document
}

fn written(document: Value) -> Vec<u8> {
    let invoice: Invoice = serde_json::from_value(document).unwrap();
    ubl::write(&invoice).unwrap()
}

pub fn store(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn e_invoices_keep_the_rules_of_en_16931() {
    let Some(checkers) = Checkers::find() else { return };
    let folder = TempDir::new().unwrap();
    let files: Vec<PathBuf> = [
        ("japanese.xml", japanese()),
        ("european.xml", european()),
        ("credit-japanese.xml", credit_note(japanese())),
        ("credit-european.xml", credit_note(european())),
        ("zero-rated.xml", without_tax(european(), true)),
        ("not-subject.xml", without_tax(european(), false)),
        ("credit-not-subject.xml", credit_note(without_tax(japanese(), false))),
    ]
    .into_iter()
    .map(|(name, document)| store(&folder, name, &written(document)))
    .collect();
    checkers.ubl(&files);

    // The checker does see faults: a total that is one off, and an element that is not there.
    let text = String::from_utf8(written(japanese())).unwrap();
    let wrong = text.replace(">237<", ">238<").replace("<cbc:IssueDate>2026-11-02</cbc:IssueDate>", "");
    let breaches = checkers.ubl_breaches(&store(&folder, "wrong.xml", wrong.as_bytes()));
    for rule in ["BR-CO-15", "BR-03", "IssueDate"] {
        assert!(breaches.contains(rule), "{rule} is not in {breaches}");
    }
}
