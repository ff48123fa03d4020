//! Exactly once: whatever happens to batches on their way, the books come out alike.

use std::sync::atomic::Ordering;

use billing::Fee;
use common::api::billing::BatchAnswer;
use proptest::prelude::*;
use serde_json::json;

use crate::fixtures::{Books, chain, record};

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_booked_once_and_known_again_after_a_restart() {
    let books = Books::open(Fee::Service).await;
    let links = chain("tokyo.n1", 1, (0..100).map(record));
    let first = books.book("tokyo.n1", 1, &links[..60]).await;
    assert_eq!((first.answer, first.booked, first.duplicates), (BatchAnswer::Booked { through: 60 }, 60, 0));
    let before = books.dump().await;

    let books = books.reopen().await;
    let again = books.book("tokyo.n1", 1, &links[..60]).await;
    assert_eq!((again.answer, again.booked, again.duplicates), (BatchAnswer::Booked { through: 60 }, 0, 60));
    assert_eq!(books.dump().await, before);
    let overlapping = books.book("tokyo.n1", 1, &links[40..]).await;
    assert_eq!((overlapping.booked, overlapping.duplicates), (40, 20));
    let empty = books.book("tokyo.n1", 1, &[]).await;
    assert_eq!(empty.answer, BatchAnswer::Booked { through: 100 });
    books.assert_verifies().await;

    let totals = books.ledger.totals().await.unwrap();
    assert_eq!(totals.records.values().sum::<u64>(), 100);
    assert_eq!(totals.exceptions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_sums_what_a_client_did_in_a_month() {
    let books = Books::open(Fee::Content).await;
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, (0..44).map(record))).await;
    let client = "bob".parse().unwrap();
    let usage = books.ledger.usage(&client, "2026-10".parse().unwrap()).await.unwrap();
    let mine: Vec<_> = (0..44).map(record).filter(|r| r.client == client).collect();
    assert_eq!(usage.deliveries.values().sum::<u64>(), mine.len() as u64);
    assert_eq!(usage.bytes_sent, mine.iter().map(|r| r.bytes_sent).sum::<u64>());
    let expected = usage.classes["purchase"] * 10_000_000 + usage.classes["reference"] * 1_000_000;
    assert_eq!(usage.charges.len(), 1);
    assert_eq!(usage.charges[0].micros, expected as i64);
    let other = books.ledger.usage(&client, "2026-11".parse().unwrap()).await.unwrap();
    assert!(other.deliveries.is_empty() && other.charges.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rated_waits_and_is_booked_when_a_tariff_comes() {
    let late = Books::open_in(tempfile::tempdir().unwrap(), Fee::Service).await;
    let links = chain("tokyo.n1", 1, (0..50).map(record));
    let report = late.book("tokyo.n1", 1, &links).await;
    assert_eq!(report.answer, BatchAnswer::Booked { through: 50 }, "it does not block");
    assert!(report.exceptions > 0 && report.booked + report.exceptions == 50);
    assert_eq!(late.ledger.totals().await.unwrap().exceptions, report.exceptions);
    late.assert_verifies().await;

    late.ledger.put_terms(&billing::demo_tariffs()).await.unwrap();
    assert_eq!(late.ledger.totals().await.unwrap().exceptions, 0);
    late.assert_verifies().await;
    let prompt = Books::open(Fee::Service).await;
    prompt.book("tokyo.n1", 1, &links).await;
    let period = "2026-10".parse().unwrap();
    for client in ["bob", "carol", "dave"] {
        let client = client.parse().unwrap();
        let (a, b) = (late.ledger.usage(&client, period).await, prompt.ledger.usage(&client, period).await);
        assert_eq!(a.unwrap(), b.unwrap());
    }
    let money = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|l| l.starts_with("balance") || l.starts_with("charge")).collect()
    };
    assert_eq!(money(late.dump().await), money(prompt.dump().await));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Two nodes' chains, cut into batches anywhere, sent in any order and more than once; gaps are answered by
    /// sending from the number that is asked for.
    #[test]
    fn any_order_cut_and_repetition_of_batches_gives_the_same_books(
        sends in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 1usize..40), 1..30),
        fee in prop_oneof![Just(Fee::Service), Just(Fee::Content)],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let chains = [chain("tokyo.n1", 1, (0..90).map(record)), chain("osaka.n1", 2, (200..270).map(record))];
            let name = |second: bool| if second { ("osaka.n1", 2) } else { ("tokyo.n1", 1) };
            let model = Books::open(fee).await;
            for (second, links) in [(false, &chains[0]), (true, &chains[1])] {
                model.book(name(second).0, name(second).1, links).await;
            }
            let books = Books::open(fee).await;
            for (second, start, len) in sends {
                let links = &chains[usize::from(second)];
                let start = start.index(links.len());
                let part = &links[start..(start + len).min(links.len())];
                let (node, epoch) = name(second);
                if let BatchAnswer::Gap { expected } = books.book(node, epoch, part).await.answer {
                    assert!(expected <= start as u64);
                    let from = expected as usize - 1;
                    let answer = books.book(node, epoch, &links[from..start]).await.answer;
                    assert_eq!(answer, BatchAnswer::Booked { through: start as u64 });
                }
            }
            for (second, links) in [(true, &chains[1]), (false, &chains[0])] {
                let through = links.len() as u64;
                let answer = books.book(name(second).0, name(second).1, links).await.answer;
                assert_eq!(answer, BatchAnswer::Booked { through });
            }
            assert_eq!(books.dump().await, model.dump().await);
            books.assert_verifies().await;
        });
    }
}

#[tokio::test]
async fn a_month_begins_where_the_tariff_is_at_home() {
    let books = Books::open(Fee::Service).await;
    let present = async |unix_ms| {
        books.clock.store(unix_ms, Ordering::Relaxed);
        books.ledger.present_period().await.unwrap().to_string()
    };
    // 2026-11-30T15:00:00Z is midnight in Tokyo.
    assert_eq!(present(1_796_050_799_999).await, "2026-11");
    assert_eq!(present(1_796_050_800_000).await, "2026-12");
    let utc = json!({"valid_from": "2026-01-01", "zone": "UTC", "currency": "JPY", "per_delivery": "1", "per_megabyte": "0"});
    books.ledger.put_tariff(utc).await.unwrap();
    assert_eq!(present(1_796_050_800_000).await, "2026-11");
}
