//! A month's end: drafts, invoices, late records.

use billing::Fee;
use billing::ledger::{CloseReport, CloseRequest, LedgerError};
use common::record::{DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus};
use common::time::UnixMillis;

use crate::fixtures::{Books, NOVEMBER, OCTOBER, chain, record};

fn delivery(n: u64, client: &str, begin: u64, class: DeliveryClass) -> DeliveryRecord {
    DeliveryRecord {
        client: client.parse().unwrap(),
        provider: "alice".parse().unwrap(),
        begin: UnixMillis(begin),
        class,
        path: DeliveryPath::Hit,
        source: None,
        surrogate: None,
        mobile_access: None,
        status: DeliveryStatus::Complete,
        ..record(n)
    }
}

async fn close(books: &Books, period: &str, dry_run: bool) -> Result<CloseReport, LedgerError> {
    let period = period.parse().unwrap();
    books.ledger.close(&CloseRequest { period, dry_run, after: String::new() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_invoiced_once_and_late_records_go_to_the_next() {
    let books = Books::open(Fee::Content).await;
    // bob: 3 purchases of 10 and 1 reference of 1 yen; carol: 1 purchase
    let october = [
        delivery(1, "bob", OCTOBER, DeliveryClass::Purchase),
        delivery(2, "bob", OCTOBER, DeliveryClass::Purchase),
        delivery(3, "bob", OCTOBER, DeliveryClass::Purchase),
        delivery(4, "bob", OCTOBER, DeliveryClass::Reference),
        delivery(5, "carol", OCTOBER, DeliveryClass::Purchase),
    ];
    let late = delivery(6, "bob", OCTOBER + 1, DeliveryClass::Purchase);
    let november = delivery(7, "bob", NOVEMBER, DeliveryClass::Reference);
    let links = chain("tokyo.n1", 1, october.into_iter().chain([late, november]));
    books.book("tokyo.n1", 1, &links[..5]).await;

    let draft = close(&books, "2026-10", true).await.unwrap();
    assert_eq!((draft.closed, draft.issued, draft.invoices.len()), (false, 0, 2));
    assert_eq!(draft.invoices[0]["total_minor"], 34, "31 yen net, 3.1 -> 3 yen tax");
    assert!(draft.invoices[0]["number"].is_null());

    let report = close(&books, "2026-10", false).await.unwrap();
    assert_eq!((report.closed, report.issued), (true, 2));
    let invoice = &report.invoices[0];
    assert_eq!(invoice["number"], "C-0000001");
    assert_eq!((invoice["client"].as_str(), invoice["net_minor"].as_i64()), (Some("bob"), Some(31)));
    assert_eq!(invoice["lines"].as_array().unwrap().len(), 2);
    assert_eq!(close(&books, "2026-10", false).await.unwrap(), report, "the same close changes nothing");
    assert_eq!(books.ledger.invoice(1, None).await.unwrap().as_ref(), Some(invoice));

    books.book("tokyo.n1", 1, &links).await;
    let usage = books.ledger.usage(&"bob".parse().unwrap(), "2026-10".parse().unwrap()).await.unwrap();
    assert_eq!(usage.deliveries["complete"], 5, "usage is by the month of the delivery");
    let report = close(&books, "2026-11", false).await.unwrap();
    assert_eq!((report.issued, report.invoices[0]["number"].as_str()), (1, Some("C-0000003")));
    let lines = report.invoices[0]["lines"].as_array().unwrap();
    let shown: Vec<_> = lines.iter().map(|l| (l["usage_period"].as_str(), l["late"].as_bool())).collect();
    assert_eq!(shown, [(Some("2026-10"), Some(true)), (Some("2026-11"), Some(false))]);

    let balances: Vec<String> = books.dump().await.into_iter().filter(|l| l.starts_with("balance")).collect();
    // Charges 31 + 11 (bob) + 10 (carol) = 52 yen; tax 3 + 1 + 1. Paid out in whole yen: of 2.05, 34.85 and 4.1 in
    // October 2, 34 and 4, of 0.05 + 0.55, 0.85 + 9.35 and 0.1 + 1.1 in November 0, 10 and 1.
    let expected = [
        "balance bank JPY -51000000",
        "balance payable:billing:content JPY -600000",
        "balance payable:provider:alice JPY -200000",
        "balance payable:site:tokyo JPY -200000",
        "balance receivable:bob JPY 46000000",
        "balance receivable:carol JPY 11000000",
        "balance tax JPY -5000000",
        "balance unbilled:bob JPY 0",
        "balance unbilled:carol JPY 0",
    ];
    assert_eq!(balances, expected);
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_month_shows_drafts_and_is_not_closed() {
    let books = Books::open(Fee::Service).await;
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, (0..30).map(record))).await;
    let refused = close(&books, "2026-12", false).await;
    assert!(matches!(refused, Err(LedgerError::Conflict(_))), "{refused:?}");
    let draft = close(&books, "2026-12", true).await.unwrap();
    assert_eq!((draft.closed, draft.invoices.len()), (false, 3));
    let report = close(&books, "2026-11", false).await.unwrap();
    assert_eq!(report.issued, 3, "a close takes the months before along");
    assert!(close(&books, "2026-12", true).await.unwrap().invoices.is_empty());
    books.assert_verifies().await;
}
