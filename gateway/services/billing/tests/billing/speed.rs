//! How many deliveries are booked per second. Run it optimised:
//! `cargo test --release -p billing -- --ignored --nocapture speed`.

use std::time::Instant;

use billing::Fee;

use crate::fixtures::{Books, chain, record};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed_of_booking_in_batches_of_a_thousand() {
    const RECORDS: u64 = 300_000;
    let links = chain("tokyo.n1", 1, (0..RECORDS).map(record));
    for fee in [Fee::Service, Fee::Content] {
        let books = Books::open(fee).await;
        let begin = Instant::now();
        for batch in links.chunks(1000) {
            books.book("tokyo.n1", 1, batch).await;
        }
        let booked = begin.elapsed();
        let begin = Instant::now();
        for batch in links.chunks(1000) {
            books.book("tokyo.n1", 1, batch).await;
        }
        let again = begin.elapsed();
        let rate = |elapsed: std::time::Duration| RECORDS as f64 / elapsed.as_secs_f64();
        println!("{fee}: booked {:.0}/s, duplicates {:.0}/s", rate(booked), rate(again));
        let begin = Instant::now();
        books.assert_verifies().await;
        println!("{fee}: verified {:.0}/s", rate(begin.elapsed()));
    }
}
