//! Documents as CSV (RFC 4180, UTF-8), for spreadsheets and for other people's books.
//!
//! Each row repeats what identifies the document. The column `row` says what `amount` is: `line`, `rounding` and
//! `tax` sum to `total` of an invoice; `opening` and `line` less `payout` make `carried` of a statement.
//! Amounts are exact decimals of the major unit.

use super::amount::{exact, whole};
use super::{Invoice, InvoiceKind, PayoutMethod, Statement};

const INVOICE_COLUMNS: &str = "document,number,of,fee,period,party,currency,row,usage_period,late,kind,class,path,\
                               deliveries,bytes_sent,amount\r\n";
const STATEMENT_COLUMNS: &str = "document,number,fee,period,party,currency,row,usage_period,late,kind,part,class,path,\
                                 deliveries,amount\r\n";

/// An invoice or a credit note. The tax row says the rate in its column `kind`, in basis points.
pub fn invoice(invoice: &Invoice) -> String {
    let (document, of) = match &invoice.kind {
        InvoiceKind::Invoice => ("invoice", ""),
        InvoiceKind::CreditNote { of } => ("credit_note", of.as_str()),
    };
    let head = [
        document,
        invoice.number.as_deref().unwrap_or_default(),
        of,
        invoice.fee.as_str(),
        &invoice.period,
        &invoice.customer.party,
        invoice.currency.code(),
    ];
    let mut out = INVOICE_COLUMNS.to_owned();
    for line in &invoice.lines {
        let detail = [
            "line",
            &line.usage_period,
            &line.late.to_string(),
            line.kind.as_str(),
            line.class.as_deref().unwrap_or_default(),
            line.path.as_deref().unwrap_or_default(),
            &line.deliveries.to_string(),
            &line.bytes_sent.to_string(),
            &exact(line.amount_micros, invoice.currency),
        ];
        push_row(&mut out, head.iter().chain(&detail));
    }
    let rate = invoice.tax_basis_points.to_string();
    for (row, kind, amount) in [
        ("rounding", "", exact(invoice.rounding_micros, invoice.currency)),
        ("tax", rate.as_str(), whole(invoice.tax_minor, invoice.currency)),
        ("total", "", whole(invoice.total_minor, invoice.currency)),
    ] {
        push_row(&mut out, head.iter().chain(&[row, "", "", kind, "", "", "", "", &amount]));
    }
    out
}

/// A payout statement. The payout row says the method in its column `kind`.
pub fn statement(statement: &Statement) -> String {
    let head = [
        "statement",
        statement.number.as_deref().unwrap_or_default(),
        statement.fee.as_str(),
        &statement.period,
        &statement.party.party,
        statement.currency.code(),
    ];
    let mut out = STATEMENT_COLUMNS.to_owned();
    let sum_row = |out: &mut String, row: &str, kind: &str, amount: &str| {
        push_row(out, head.iter().chain(&[row, "", "", kind, "", "", "", "", amount]));
    };
    sum_row(&mut out, "opening", "", &exact(statement.opening_micros, statement.currency));
    for line in &statement.lines {
        let detail = [
            "line",
            &line.usage_period,
            &line.late.to_string(),
            line.kind.as_str(),
            &line.part,
            line.class.as_deref().unwrap_or_default(),
            line.path.as_deref().unwrap_or_default(),
            &line.deliveries.to_string(),
            &exact(line.amount_micros, statement.currency),
        ];
        push_row(&mut out, head.iter().chain(&detail));
    }
    let method = statement.payout_method.map(PayoutMethod::as_str).unwrap_or_default();
    sum_row(&mut out, "payout", method, &whole(statement.payout_minor, statement.currency));
    sum_row(&mut out, "carried", "", &exact(statement.carried_micros, statement.currency));
    out
}

fn push_row<'a>(out: &mut String, fields: impl Iterator<Item = &'a &'a str>) {
    for (index, field) in fields.enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_field(out, field);
    }
    out.push_str("\r\n");
}

/// Quoted where needed. A text that a spreadsheet would take for a formula gets an apostrophe before it.
fn push_field(out: &mut String, field: &str) {
    let number = !field.is_empty() && field.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    let formula = !number && field.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let quoted = field.contains([',', '"', '\r', '\n']);
    if quoted {
        out.push('"');
    }
    if formula {
        out.push('\'');
    }
    out.push_str(&field.replace('"', "\"\""));
    if quoted {
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use common::money::Currency;

    use super::super::samples;
    use super::*;

    #[test]
    fn an_invoice_has_a_row_a_line_and_its_sums() {
        let text = invoice(&samples::invoice());
        let head = "invoice,S-0000012,,service,2026-10,client:bob,JPY";
        let rows: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(rows[0], INVOICE_COLUMNS.trim_end());
        assert_eq!(
            rows[1..],
            [
                format!("{head},line,2026-10,false,usage,purchase,hit,12,3400000,124.691").as_str(),
                &format!("{head},line,2026-09,true,usage,reference,hit,12,3400000,90.809"),
                &format!("{head},rounding,,,,,,,,0.5"),
                &format!("{head},tax,,,1000,,,,,21"),
                &format!("{head},total,,,,,,,,237"),
                "",
            ]
        );
        assert!(invoice(&samples::credit_note()).contains("credit_note,S-0000013,S-0000012,service"));
    }

    #[test]
    fn a_statement_goes_from_opening_to_carried() {
        let text = statement(&samples::statement());
        let head = "statement,SP-0000003,service,2026-10,site:tokyo,JPY";
        let rows: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(rows[0], STATEMENT_COLUMNS.trim_end());
        assert_eq!(
            rows[1..],
            [
                format!("{head},opening,,,,,,,,0.25").as_str(),
                &format!("{head},line,2026-10,false,usage,home,,peer,24000,1240"),
                &format!("{head},line,2026-10,false,correction,source,,peer,12,-5.433"),
                &format!("{head},payout,,,bank,,,,,1234"),
                &format!("{head},carried,,,,,,,,0.817"),
                "",
            ]
        );
    }

    #[test]
    fn every_row_has_a_field_for_every_column() {
        for text in [invoice(&samples::invoice()), statement(&samples::statement())] {
            let commas = |row: &str| row.matches(',').count();
            let columns = commas(text.lines().next().unwrap());
            assert!(text.lines().all(|row| commas(row) == columns), "{text}");
        }
    }

    #[test]
    fn fields_are_quoted_and_never_formulas() {
        let field = |text| {
            let mut out = String::new();
            push_field(&mut out, text);
            out
        };
        assert_eq!(field("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(field("=1+1"), "'=1+1");
        assert_eq!(field("-cmd|' /C calc'!A0"), "'-cmd|' /C calc'!A0");
        assert_eq!(field("-5.433"), "-5.433");
    }

    #[test]
    fn amounts_of_an_invoice_sum_to_its_total() {
        let invoice_text = invoice(&samples::invoice_of(Currency::Eur, 1900, &[123_456_789, 1, -3_333_333]));
        let micros = |text: &str| {
            let (units, fraction) = text.split_once('.').unwrap_or((text, ""));
            let digits: i64 = format!("{units}{fraction:0<8}").parse().unwrap();
            digits
        };
        let rows: Vec<Vec<&str>> = invoice_text.lines().skip(1).map(|row| row.split(',').collect()).collect();
        let (total, parts) = rows.split_last().unwrap();
        assert_eq!(total[7], "total");
        let sum: i64 = parts.iter().map(|row| micros(row[15])).sum();
        assert_eq!(sum, micros(total[15]));
        assert_eq!(sum % 1_000_000, 0, "whole cents");
    }
}
