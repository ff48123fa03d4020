//! Taking charges back, before and after they were invoiced; discounts, payouts and payments.

use billing::Fee;
use billing::documents::{Invoice, InvoiceKind, LineKind, PayoutMethod, Statement};
use billing::ledger::{
    CloseRequest, CorrectionReport, CorrectionRequest, DeliveryNumber, LedgerError, PaymentRequest,
};
use billing::tariff::{Party, Payout, PayoutBasis, Tier};
use billing::{Terms, demo_tariffs};
use common::record::{DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus};
use common::time::UnixMillis;

use crate::fixtures::{Books, NOVEMBER, OCTOBER, chain, record};

fn delivery(n: u64, client: &str, begin: u64) -> DeliveryRecord {
    DeliveryRecord {
        client: client.parse().unwrap(),
        provider: "alice".parse().unwrap(),
        begin: UnixMillis(begin + n),
        class: DeliveryClass::Purchase,
        path: DeliveryPath::Hit,
        source: None,
        surrogate: None,
        mobile_access: None,
        status: DeliveryStatus::Complete,
        bytes_total: 0,
        ..record(n)
    }
}

async fn close(books: &Books, period: &str) -> Vec<Invoice> {
    let request = CloseRequest { period: period.parse().unwrap(), dry_run: false, after: String::new() };
    let report = books.ledger.close(&request).await.unwrap();
    report.invoices.into_iter().map(|document| serde_json::from_value(document).unwrap()).collect()
}

async fn take_back(books: &Books, seqs: &[u64]) -> Result<CorrectionReport, LedgerError> {
    let number = |seq: &u64| DeliveryNumber { node: "tokyo.n1".parse().unwrap(), epoch: 1, seq: *seq };
    let deliveries = seqs.iter().map(number).collect();
    books.ledger.correct(CorrectionRequest { deliveries, reason: "it was broken".into() }, None).await
}

async fn balance(books: &Books, account: &str) -> i64 {
    let all = books.ledger.accounts("", 1000).await.unwrap();
    all.into_iter().find(|a| a.account == account).map_or(0, |a| a.balance_micros)
}

async fn statement(books: &Books, party: &str, period: &str) -> Statement {
    let mut all = books.ledger.statements(party, period.parse().unwrap()).await.unwrap();
    assert_eq!(all.len(), 1, "{party} {period}");
    all.remove(0)
}

fn tier(from_deliveries: u64, discount_basis_points: u32) -> Tier {
    Tier { from_deliveries, discount_basis_points }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_that_is_taken_back_in_its_month_is_not_invoiced() {
    let books = Books::open(Fee::Content).await;
    let links = chain("tokyo.n1", 1, (0..3).map(|n| delivery(n, "bob", OCTOBER)));
    books.book("tokyo.n1", 1, &links).await;
    let report = take_back(&books, &[2]).await.unwrap();
    assert_eq!((report.corrected, report.credit_notes.len()), (1, 0));
    assert_eq!(balance(&books, "unbilled:bob").await, 20_000_000);
    assert_eq!(balance(&books, "payable:provider:alice").await, -17_000_000, "85 % of 20 yen");
    books.assert_verifies().await;

    let again = take_back(&books, &[2]).await;
    assert!(matches!(&again, Err(LedgerError::Conflict(m)) if m.contains("it was broken")), "{again:?}");
    let none = take_back(&books, &[1, 9]).await;
    assert!(matches!(none, Err(LedgerError::NotFound(_))), "{none:?}");
    assert!(take_back(&books, &[1, 1]).await.is_err());
    assert_eq!(balance(&books, "unbilled:bob").await, 20_000_000, "all or nothing");

    let invoices = close(&books, "2026-10").await;
    assert_eq!((invoices[0].lines.len(), invoices[0].lines[0].deliveries, invoices[0].net_minor), (1, 2, 20));
    let shown = statement(&books, "provider:alice", "2026-10").await;
    let kinds: Vec<_> = shown.lines.iter().map(|l| (l.kind, l.deliveries, l.amount_micros)).collect();
    assert_eq!(kinds, [(LineKind::Correction, 1, -8_500_000), (LineKind::Usage, 3, 25_500_000)]);
    assert_eq!((shown.payout_minor, shown.number.as_deref()), (17, Some("CP-0000002")));
    let usage = books.ledger.usage(&"bob".parse().unwrap(), "2026-10".parse().unwrap()).await.unwrap();
    assert_eq!((usage.deliveries["complete"], usage.charges[0].micros), (3, 20_000_000));
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_notes_never_drift_however_often_a_charge_is_taken_back() {
    let mut terms = demo_tariffs();
    // Thirds of a yen: three deliveries cost 1.000002 yen.
    terms.service.tariffs[0].per_delivery = "0.333334".into();
    let books = Books::with_terms(Fee::Service, &terms).await;
    let links = chain("tokyo.n1", 1, (0..30).map(|n| delivery(n, "bob", OCTOBER)));
    books.book("tokyo.n1", 1, &links).await;
    let issued = close(&books, "2026-10").await.remove(0);
    assert_eq!((issued.net_minor, issued.tax_minor), (10, 1));
    let mut credited = (0, 0, 0, 0);
    for seq in 1..=30 {
        let report = take_back(&books, &[seq]).await.unwrap();
        let [note] = &report.credit_notes[..] else { panic!("{report:?}") };
        assert_eq!(note.kind, InvoiceKind::CreditNote { of: "S-0000001".into() });
        credited.0 += note.net_minor;
        credited.1 += note.tax_minor;
        credited.2 += note.total_minor;
        credited.3 += note.charges_micros;
        let charges = 30 * 333_334 - credited.3;
        // As the invoice would be now: half up, and the tax's floor.
        let net = (charges + 500_000) / 1_000_000;
        assert_eq!((10 - credited.0, 1 - credited.1), (net, net / 10), "after {seq}");
    }
    assert_eq!((credited.2, credited.3), (issued.total_minor, issued.charges_micros));
    for account in ["receivable:bob", "unbilled:bob", "tax", "rounding"] {
        assert_eq!(balance(&books, account).await, 0, "{account}");
    }
    books.assert_verifies().await;
    // What parties were paid for it is a debt that is carried on.
    let shown = statement(&books, "site:tokyo", "2026-12").await;
    // 80 % of 0.333334 is 0.266667 (to billing goes the greater remainder): 8.000010 were earned, 8 paid out.
    assert_eq!((shown.opening_micros, shown.earned_micros), (10, -8_000_010));
    assert!(shown.carried_micros < 0 && shown.payout_minor == 0, "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_s_discount_is_borne_by_the_parties_and_shrinks_with_a_correction() {
    let mut terms = demo_tariffs();
    terms.service.tariffs[0].per_delivery = "1".into();
    terms.service.tariffs[0].free_deliveries = 10;
    terms.service.tariffs[0].tiers = vec![tier(20, 5_000)];
    let books = Books::with_terms(Fee::Service, &terms).await;
    let of_bob = (0..40).map(|n| delivery(n, "bob", OCTOBER));
    let of_carol = (40..45).map(|n| delivery(n, "carol", OCTOBER));
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, of_bob.chain(of_carol))).await;
    let invoices = close(&books, "2026-10").await;
    // bob: 10 free, 10 in full, 20 at half: 20 yen off 40; carol's 5 are all free
    let shown: Vec<_> = invoices.iter().map(|i| (i.client.as_str(), i.net_minor, i.lines.len())).collect();
    assert_eq!(shown, [("bob", 20, 2), ("carol", 0, 2)]);
    assert_eq!(invoices[0].lines[1].amount_micros, -20_000_000);
    // tokyo has 80 % of what is left
    let tokyo = statement(&books, "site:tokyo", "2026-10").await;
    assert_eq!((tokyo.earned_micros, tokyo.payout_minor), (16_000_000, 16));
    books.assert_verifies().await;

    // 39 would cost 39 less 10 less 9.5 = 19.5 yen: 0.5 yen is credited, of which half up makes 20 - 20 = 0
    let note = take_back(&books, &[1]).await.unwrap().credit_notes.remove(0);
    assert_eq!((note.charges_micros, note.net_minor), (500_000, 0));
    assert_eq!(balance(&books, "unbilled:bob").await, 0);
    let note = take_back(&books, &[2]).await.unwrap().credit_notes.remove(0);
    assert_eq!((note.charges_micros, note.net_minor, note.tax_minor), (500_000, 1, 1));
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_settle_invoices_and_each_reference_counts_once() {
    let books = Books::open(Fee::Content).await;
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, (0..10).map(|n| delivery(n, "bob", OCTOBER)))).await;
    assert_eq!(close(&books, "2026-10").await[0].total_minor, 110);
    let pay = |minor, reference: &str| PaymentRequest {
        invoice: "C-0000001".into(),
        minor,
        reference: reference.to_owned(),
    };
    let left = books.ledger.pay(pay(60, "bank 1"), None).await.unwrap();
    assert_eq!(left.open_minor, 50);
    assert_eq!(books.ledger.pay(pay(60, "bank 1"), None).await.unwrap().open_minor, 50, "known");
    assert!(matches!(books.ledger.pay(pay(50, "bank 1"), None).await, Err(LedgerError::Conflict(_))));
    assert!(matches!(books.ledger.pay(pay(51, "bank 2"), None).await, Err(LedgerError::Conflict(_))));
    assert_eq!(books.ledger.pay(pay(50, "bank 2"), None).await.unwrap().open_minor, 0);
    let unknown = PaymentRequest { invoice: "C-0000007".into(), ..pay(1, "bank 3") };
    assert!(matches!(books.ledger.pay(unknown, None).await, Err(LedgerError::NotFound(_))));
    assert_eq!(balance(&books, "receivable:bob").await, 0);
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payouts_wait_for_the_minimum_and_for_what_came_in() {
    let mut terms = demo_tariffs();
    terms.content.tariffs[0].payout = Payout { minimum: "10".into(), basis: PayoutBasis::Collected };
    let books = Books::with_terms(Fee::Content, &terms).await;
    let october = (0..10).map(|n| delivery(n, "bob", OCTOBER));
    let november = (10..12).map(|n| delivery(n, "bob", NOVEMBER));
    let links = chain("tokyo.n1", 1, october.chain(november));
    books.book("tokyo.n1", 1, &links).await;
    close(&books, "2026-10").await;
    let alice = statement(&books, "provider:alice", "2026-10").await;
    assert_eq!((alice.payout_minor, alice.carried_micros), (0, 85_000_000), "nothing came in yet");

    let paid = PaymentRequest { invoice: "C-0000001".into(), minor: 70, reference: "b1".into() };
    books.ledger.pay(paid, None).await.unwrap();
    close(&books, "2026-11").await;
    // 102 yen for alice and 12 for tokyo wait, 6 for billing are below the minimum; 70 came in
    let alice = statement(&books, "provider:alice", "2026-11").await;
    assert_eq!((alice.balance_micros, alice.payout_minor), (102_000_000, 70 * 102 / 114));
    let tokyo = statement(&books, "site:tokyo", "2026-11").await;
    assert_eq!((tokyo.payout_minor, tokyo.carried_micros), (70 * 12 / 114, 5_000_000));
    let billing = statement(&books, "billing:content", "2026-11").await;
    assert_eq!((billing.payout_minor, billing.number), (0, None));
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_in_the_system_pays_the_same_name_s_invoices() {
    let terms = Terms {
        parties: vec![Party {
            party: "provider:alice".into(),
            valid_from: "2020-01-01".into(),
            zone: "UTC".into(),
            name: "Alice Records".into(),
            address: None,
            registration_number: None,
            country: Some("JP".into()),
            email: None,
            payout: PayoutMethod::Wallet,
            bank: None,
        }],
        ..demo_tariffs()
    };
    let books = Books::with_terms(Fee::Content, &terms).await;
    let sold = delivery(0, "bob", OCTOBER);
    let bought = DeliveryRecord { provider: "dave".parse().unwrap(), ..delivery(1, "alice", NOVEMBER) };
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, [sold, bought])).await;
    close(&books, "2026-10").await;
    let alice = statement(&books, "provider:alice", "2026-10").await;
    assert_eq!(
        (alice.party.name.as_str(), alice.payout_method),
        ("Alice Records", Some(PayoutMethod::Wallet))
    );
    assert_eq!((alice.payout_minor, balance(&books, "wallet:alice").await), (8, -8_000_000));
    let invoice = close(&books, "2026-11").await.remove(0);
    assert_eq!((invoice.client.as_str(), invoice.total_minor), ("alice", 11));
    assert_eq!(balance(&books, "wallet:alice").await, 0);
    assert_eq!(balance(&books, "receivable:alice").await, 3_000_000);
    books.assert_verifies().await;
}
