//! Documents that the tests of this folder share.

use common::id::ClientId;
use common::money::{Currency, MICROS_PER_MINOR, Money};

use super::{Invoice, InvoiceKind, InvoiceLine, LineKind, PartyView, PayoutMethod, Statement, StatementLine};

fn party(party: &str, name: &str, country: &str) -> PartyView {
    PartyView {
        party: party.into(),
        name: name.into(),
        address: None,
        country: Some(country.into()),
        registration_number: None,
        email: None,
    }
}

/// An issued invoice over 12 deliveries a line, alternately purchases and references.
pub(crate) fn invoice_of(currency: Currency, tax_basis_points: u32, amounts_micros: &[i64]) -> Invoice {
    let line = |(index, amount): (usize, &i64)| InvoiceLine {
        usage_period: "2026-10".into(),
        late: false,
        kind: if *amount < 0 { LineKind::Discount } else { LineKind::Usage },
        class: Some(if index % 2 == 0 { "purchase" } else { "reference" }.into()),
        path: Some("hit".into()),
        deliveries: 12,
        bytes_sent: 3_400_000,
        amount_micros: *amount,
    };
    let charges: i64 = amounts_micros.iter().sum();
    let net = Money { micros: charges, currency }.round_to_minor();
    let tax = (net * i64::from(tax_basis_points)).div_euclid(10_000);
    let mut issuer = party("billing:service", "Dōzo Delivery K.K.", "JP");
    issuer.registration_number = Some("T1234567890123".into());
    issuer.address = Some("1-1 Chiyoda\nTokyo".into());
    Invoice {
        number: Some("S-0000012".into()),
        kind: InvoiceKind::Invoice,
        fee: "service".into(),
        client: ClientId::new("bob").unwrap(),
        period: "2026-10".into(),
        issuer,
        customer: party("client:bob", "Bob & <Sons> \"Ltd\"", "DE"),
        currency,
        issued_ms: Some(1_793_545_200_000),
        issue_date: Some("2026-11-02".into()),
        due_date: Some("2026-11-30".into()),
        period_begin: "2026-10-01".into(),
        period_end: "2026-10-31".into(),
        lines: amounts_micros.iter().enumerate().map(line).collect(),
        charges_micros: charges,
        net_minor: net,
        rounding_micros: net * MICROS_PER_MINOR - charges,
        tax_basis_points,
        tax_minor: tax,
        total_minor: net + tax,
    }
}

/// 124.691 + 90.809 = 215.5 yen -> 216 net, 21.6 -> 21 tax, 237 in all.
pub(crate) fn invoice() -> Invoice {
    let mut invoice = invoice_of(Currency::Jpy, 1000, &[124_691_000, 90_809_000]);
    invoice.lines[1].usage_period = "2026-09".into();
    invoice.lines[1].late = true;
    invoice
}

pub(crate) fn credit_note() -> Invoice {
    let mut note = invoice_of(Currency::Jpy, 1000, &[50_500_000]);
    note.lines[0].kind = LineKind::Correction;
    note.kind = InvoiceKind::CreditNote { of: "S-0000012".into() };
    note.number = Some("S-0000013".into());
    note.due_date = None;
    note
}

/// 0.25 yen carried in, 1,234.567 earned, 1,234 paid.
pub(crate) fn statement() -> Statement {
    let line = |part: &str, kind, deliveries, amount_micros| StatementLine {
        usage_period: "2026-10".into(),
        late: false,
        kind,
        part: part.into(),
        class: None,
        path: Some("peer".into()),
        deliveries,
        amount_micros,
    };
    Statement {
        number: Some("SP-0000003".into()),
        fee: "service".into(),
        party: party("site:tokyo", "東京配信株式会社", "JP"),
        issuer: party("billing:service", "Dōzo Delivery K.K.", "JP"),
        period: "2026-10".into(),
        currency: Currency::Jpy,
        issued_ms: Some(1_793_545_200_000),
        issue_date: Some("2026-11-02".into()),
        opening_micros: 250_000,
        lines: vec![
            line("home", LineKind::Usage, 24_000, 1_240_000_000),
            line("source", LineKind::Correction, 12, -5_433_000),
        ],
        earned_micros: 1_234_567_000,
        balance_micros: 1_234_817_000,
        payout_minor: 1_234,
        payout_method: Some(PayoutMethod::Bank),
        carried_micros: 817_000,
    }
}
