//! The month that is worked by hand in the documentation, booked: every number of its tables is compared.

use billing::documents::Invoice;
use billing::ledger::CloseRequest;
use billing::{Fee, Terms};
use common::record::{DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};

use crate::fixtures::{Books, chain, record};

const DOCUMENT: &str = include_str!("../../src/a_month.md");

/// What the document agrees on.
const TERMS: &str = r#"
[[service.tariffs]]
valid_from = "2026-01-01"
currency = "JPY"
per_delivery = "100"
per_megabyte = "5"
surrogate_surcharge = "30"
[[service.splits]]
valid_from = "2026-01-01"
hit = { home = 8000, billing = 2000 }
peer = { home = 5000, source = 3000, search = 1000, billing = 1000 }
origin = { home = 5000, origin = 3000, search = 1000, billing = 1000 }
surcharge = { surrogate = 6000, mobile_access = 3000, billing = 1000 }
[[content.tariffs]]
valid_from = "2026-01-01"
currency = "JPY"
purchase = "500"
reference = "50"
[[content.splits]]
valid_from = "2026-01-01"
hit = { home = 1000, billing = 500 }
peer = { home = 800, source = 400, search = 200, billing = 500 }
origin = { home = 800, origin = 400, search = 200, billing = 500 }
surrogate = 300
"#;

/// The cells of the table whose first heading is `first`.
fn table(first: &str) -> Vec<Vec<&'static str>> {
    let head = format!("| {first} | ");
    let lines = DOCUMENT.lines().skip_while(|line| !line.starts_with(&head)).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn deliveries() -> Vec<DeliveryRecord> {
    let delivery = |row: Vec<&str>| {
        let [n, client, home, class, path, source, away, status] = row[..] else { panic!("{row:?}") };
        let named = |text: &str| (text != "-").then(|| text.to_owned());
        DeliveryRecord {
            client: client.parse().unwrap(),
            provider: "alice".parse().unwrap(),
            content: "alice/song.wav".parse().unwrap(),
            home: home.parse().unwrap(),
            class: if class == "purchase" { DeliveryClass::Purchase } else { DeliveryClass::Reference },
            path: if path == "peer" { DeliveryPath::Peer } else { DeliveryPath::Hit },
            source: named(source).map(|site| Source::Site(site.parse().unwrap())),
            surrogate: named(away).map(|site| site.parse().unwrap()),
            mobile_access: named(away).map(|_| "m1".parse().unwrap()),
            status: if status == "void" { DeliveryStatus::Void } else { DeliveryStatus::Complete },
            bytes_total: 4_000_000,
            bytes_sent: if status == "void" { 0 } else { 4_000_000 },
            ..record(n.parse().unwrap())
        }
    };
    table("n").into_iter().map(delivery).collect()
}

/// `12.5` yen as millionths.
fn micros(yen: &str) -> i64 {
    let (whole, half) = yen.split_once('.').map_or((yen, "0"), |(whole, half)| (whole, half));
    whole.parse::<i64>().unwrap() * 1_000_000 + half.parse::<i64>().unwrap() * 100_000
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worked_month_comes_out_as_it_is_written() {
    let terms: Terms = toml::from_str(TERMS).unwrap();
    let october = "2026-10".parse().unwrap();
    let links = chain("tokyo.n1", 1, deliveries());
    assert_eq!(links.len(), 5);
    let (mut invoices, mut payouts) = (0, 0);
    for (fee, letter) in [(Fee::Service, 'S'), (Fee::Content, 'C')] {
        let books = Books::with_terms(fee, &terms).await;
        books.book("tokyo.n1", 1, &links).await;
        let request = CloseRequest { period: october, dry_run: false, after: String::new() };
        let closed = books.ledger.close(&request).await.unwrap();
        let mut issued = closed.invoices.into_iter();
        for row in table("invoice").into_iter().filter(|row| row[0].starts_with(letter)) {
            let invoice: Invoice = serde_json::from_value(issued.next().unwrap()).unwrap();
            let shown = [invoice.net_minor, invoice.tax_minor, invoice.total_minor].map(|n| n.to_string());
            let number = invoice.number.as_deref().unwrap();
            assert_eq!([number, invoice.client.as_str(), &shown[0], &shown[1], &shown[2]], row[..]);
            invoices += 1;
        }
        assert!(issued.next().is_none());
        for row in table("payout").into_iter().filter(|row| row[0].starts_with(letter)) {
            let statement = books.ledger.statements(row[1], october).await.unwrap().remove(0);
            assert_eq!(statement.number.as_deref(), Some(row[0]));
            assert_eq!((statement.earned_micros, statement.carried_micros), (micros(row[2]), micros(row[4])));
            assert_eq!(statement.payout_minor.to_string(), row[3]);
            payouts += 1;
        }
        books.assert_verifies().await;
    }
    assert_eq!((invoices, payouts), (5, 10));
}
