//! What the ledger must not take: contradicting records, gaps, and any change of what is booked.

use billing::Fee;
use billing::chain::{CheckedBatch, MalformedBatch};
use billing::ledger::LedgerError;
use common::api::billing::{BatchAnswer, RecordBatch};
use common::id::NodeId;
use common::record::{DeliveryRecord, DeliveryStatus};
use serde_json::json;
use sqlx::{AssertSqlSafe, Row};

use crate::fixtures::{Books, chain, record};

async fn quarantined(books: &Books) -> i64 {
    let mut raw = books.raw().await;
    sqlx::query("SELECT count(*) FROM quarantine").fetch_one(&mut raw).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn contradicting_records_are_quarantined_and_nothing_of_their_batch_is_booked() {
    let books = Books::open(Fee::Service).await;
    let links = chain("tokyo.n1", 1, (0..20).map(record));
    books.book("tokyo.n1", 1, &links[..10]).await;
    let before = books.dump().await;

    let forked = chain("tokyo.n1", 1, (0..20).map(|n| record(if n < 7 { n } else { n + 100 })));
    let report = books.book("tokyo.n1", 1, &forked).await;
    assert!(matches!(report.answer, BatchAnswer::Fork { seq: 8, .. }), "{report:?}");
    assert_eq!((report.booked, report.refused), (0, 20));

    let mut tampered = links[10..].to_vec();
    tampered[3].record.bytes_total += 1;
    let report = books.book("tokyo.n1", 1, &tampered).await;
    assert!(matches!(report.answer, BatchAnswer::Fork { seq: 14, .. }), "{report:?}");

    let unlinked = books.book("tokyo.n1", 1, &forked[10..]).await;
    assert!(matches!(unlinked.answer, BatchAnswer::Fork { seq: 11, .. }), "{unlinked:?}");

    let other_node = books.book("tokyo.n2", 1, &links[..1]).await;
    assert!(matches!(other_node.answer, BatchAnswer::Fork { seq: 1, .. }), "another node's record");

    assert_eq!(books.dump().await, before);
    assert_eq!(quarantined(&books).await, 4);
    books.book("tokyo.n1", 1, &forked).await;
    assert_eq!(quarantined(&books).await, 4, "the same record is kept once");
    assert_eq!(books.book("tokyo.n1", 1, &links).await.answer, BatchAnswer::Booked { through: 20 });
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_told_and_epochs_only_rise() {
    let books = Books::open(Fee::Service).await;
    let links = chain("tokyo.n1", 5, (0..20).map(record));
    let gap = books.book("tokyo.n1", 5, &links[3..]).await;
    assert_eq!(gap.answer, BatchAnswer::Gap { expected: 1 });
    books.book("tokyo.n1", 5, &links[..4]).await;
    let gap = books.book("tokyo.n1", 5, &links[9..]).await;
    assert_eq!(gap.answer, BatchAnswer::Gap { expected: 5 });

    let older = chain("tokyo.n1", 4, (30..35).map(record));
    assert!(matches!(books.book("tokyo.n1", 4, &older).await.answer, BatchAnswer::Fork { seq: 1, .. }));
    let newer = chain("tokyo.n1", 6, (40..45).map(record));
    assert_eq!(books.book("tokyo.n1", 6, &newer).await.answer, BatchAnswer::Booked { through: 5 });
    let tail = books.book("tokyo.n1", 5, &links[4..]).await;
    assert_eq!(tail.answer, BatchAnswer::Booked { through: 20 }, "a known epoch's tail may come late");
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_money_than_an_account_holds_is_not_booked_at_all_and_stops_nobody_else() {
    let mut terms = billing::demo_tariffs();
    terms.service.tariffs[0].per_delivery = "999999999".into();
    terms.service.tariffs[0].per_megabyte = "0".into();
    let books = Books::with_terms(Fee::Service, &terms).await;
    // A billion yen each: an account holds 9,223 of them.
    let bobs = |n: u64| DeliveryRecord { client: "bob".parse().unwrap(), ..record(n * 5) };
    let links = chain(
        "tokyo.n1",
        1,
        (0..12_000).map(bobs).map(|r| DeliveryRecord {
            status: DeliveryStatus::Complete,
            surrogate: None,
            ..r
        }),
    );
    books.book("tokyo.n1", 1, &links[..4_000]).await;
    books.book("tokyo.n1", 1, &links[4_000..8_000]).await;
    let before = books.dump().await;
    let node = NodeId::new("tokyo.n1").unwrap();
    let batch = RecordBatch { node, epoch: 1, records: links[8_000..].to_vec(), passed: None };
    let refused = books.ledger.book(CheckedBatch::new(batch).unwrap()).await;
    assert!(matches!(refused, Err(LedgerError::NotCommitted(_))), "{refused:?}");
    assert_eq!(books.dump().await, before);
    let other = chain("osaka.n1", 1, [DeliveryRecord { client: "carol".parse().unwrap(), ..bobs(0) }]);
    assert_eq!(books.book("osaka.n1", 1, &other).await.answer, BatchAnswer::Booked { through: 1 });
    books.assert_verifies().await;
}

#[test]
fn malformed_batches_are_refused_before_the_ledger() {
    let links = chain("tokyo.n1", 1, (0..5000).map(record));
    let batch = |records: &[common::record::ChainedRecord], epoch| {
        let node = NodeId::new("tokyo.n1").unwrap();
        CheckedBatch::new(RecordBatch { node, epoch, records: records.to_vec(), passed: None }).map(drop)
    };
    assert_eq!(batch(&links, 1), Err(MalformedBatch::TooMany(5000)));
    let holed = [links[0].clone(), links[2].clone()];
    assert_eq!(batch(&holed, 1), Err(MalformedBatch::NotContiguous { last: 1, got: 3 }));
    assert_eq!(batch(&links[..1], u64::MAX), Err(MalformedBatch::Number));
    assert_eq!(batch(&links[..4096], 1), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_itself_refuses_to_forget_or_to_unbalance() {
    let books = Books::open(Fee::Service).await;
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, (0..5).map(record))).await;
    let request = billing::ledger::CloseRequest {
        period: "2026-09".parse().unwrap(),
        dry_run: false,
        after: String::new(),
    };
    books.ledger.close(&request).await.unwrap();
    let before = books.dump().await;
    let mut raw = books.raw().await;
    let is_sqlite = raw.backend_name() == "SQLite";
    let digest = if is_sqlite { "zeroblob(32)" } else { "decode(repeat('00', 32), 'hex')" };
    let journal = &format!(
        "INSERT INTO journals (id, kind, period, currency, reference, booked_ms, digest) \
         VALUES (900, 'invoice', 202612, 'JPY', '', 0, {digest})"
    );
    let posting = |line: i64, amount: &str| {
        format!("INSERT INTO postings (journal, line, account, amount) VALUES (900, {line}, 1, {amount})")
    };
    let into_closed = journal.replace("202612", "202609");
    let mut attempts = vec![
        vec!["UPDATE events SET bytes_sent = 0".to_owned()],
        vec!["DELETE FROM events".to_owned()],
        vec!["UPDATE journals SET period = 202612".to_owned()],
        vec!["DELETE FROM journals".to_owned()],
        vec!["UPDATE postings SET amount = amount + 1".to_owned()],
        vec!["DELETE FROM postings".to_owned()],
        vec!["UPDATE tariffs SET document = ''".to_owned()],
        vec!["DELETE FROM splits".to_owned()],
        vec!["DELETE FROM periods".to_owned()],
        vec!["DELETE FROM balances".to_owned()],
        vec!["DELETE FROM accounts".to_owned()],
        vec!["UPDATE accounts SET name = 'x'".to_owned()],
        vec![posting(0, "5"), posting(1, "-4"), journal.to_owned()],
        vec![posting(0, "5"), journal.to_owned()],
        vec![journal.to_owned()],
        vec![posting(0, "5"), posting(1, "-5"), into_closed],
        vec!["INSERT INTO postings (journal, line, account, amount) VALUES (1, 99, 1, 1)".to_owned()],
        vec!["INSERT INTO postings (journal, line, account, amount) VALUES (900, 0, 999, 1)".to_owned()],
        // A posting whose journal never comes fails at the commit.
        vec![posting(0, "5"), "COMMIT".to_owned()],
    ];
    // PostgreSQL makes whole numbers of them before anything can look.
    if is_sqlite {
        attempts.push(vec!["UPDATE balances SET amount = 0.5".to_owned()]);
        attempts.push(vec![posting(0, "0.5")]);
    } else {
        attempts.push(vec!["TRUNCATE events CASCADE".to_owned()]);
    }
    for attempt in attempts {
        sqlx::raw_sql("BEGIN").execute(&mut raw).await.unwrap();
        let (last, first) = attempt.split_last().unwrap();
        for statement in first {
            sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut raw).await.unwrap();
        }
        let refused = sqlx::raw_sql(AssertSqlSafe(last.clone())).execute(&mut raw).await;
        assert!(refused.is_err(), "{attempt:?}");
        sqlx::raw_sql("ROLLBACK").execute(&mut raw).await.unwrap();
    }
    assert_eq!(books.dump().await, before);
    books.assert_verifies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_was_changed_behind_its_back() {
    let books = Books::open(Fee::Service).await;
    books.book("tokyo.n1", 1, &chain("tokyo.n1", 1, (0..5).map(record))).await;
    books.ledger.totals().await.unwrap();
    let mut raw = books.raw().await;
    let drop = match raw.backend_name() {
        "SQLite" => "DROP TRIGGER postings_keep; DROP TRIGGER events_keep;",
        _ => "DROP TRIGGER postings_keep ON postings; DROP TRIGGER events_keep ON events;",
    };
    let change = "UPDATE postings SET amount = amount + 1 WHERE journal = 1 AND account = \
         (SELECT id FROM accounts WHERE name = 'unbilled:bob'); \
         UPDATE events SET client = 'mallory' WHERE seq = 3;";
    sqlx::raw_sql(drop).execute(&mut raw).await.unwrap();
    sqlx::raw_sql(change).execute(&mut raw).await.unwrap();
    let report = books.ledger.verify().await.unwrap();
    assert!(!report.ok);
    for part in
        ["journal 1 sums to 1 JPY", "account unbilled:bob has balance", "record 3 of tokyo.n1", "mallory"]
    {
        assert!(report.findings.iter().any(|f| f.contains(part)), "{part}: {:#?}", report.findings);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_only_added_each_after_the_one_before() {
    let books = Books::open(Fee::Service).await;
    let mut tariff = serde_json::to_value(&billing::demo_tariffs().service.tariffs[0]).unwrap();
    assert_eq!(books.ledger.put_tariff(tariff.clone()).await.unwrap(), 1, "the same again changes nothing");
    tariff["per_delivery"] = json!("0.20");
    let same_time = books.ledger.put_tariff(tariff.clone()).await;
    assert!(matches!(same_time, Err(LedgerError::Conflict(_))), "{same_time:?}");
    tariff["valid_from"] = json!("2019-12-31");
    assert!(matches!(books.ledger.put_tariff(tariff.clone()).await, Err(LedgerError::Conflict(_))));
    tariff["valid_from"] = json!("2026-11-01");
    assert_eq!(books.ledger.put_tariff(tariff.clone()).await.unwrap(), 2);
    tariff["valid_from"] = json!("2027-01-01");
    tariff["currency"] = json!("BTC");
    let unknown = books.ledger.put_tariff(tariff).await;
    assert!(matches!(unknown, Err(LedgerError::Terms(_))), "{unknown:?}");
}
