//! Listings, against a model that reads the whole bucket each time.

use std::collections::BTreeSet;

use common::api::search::{ContentPage, ListQuery, SearchClient};
use proptest::prelude::*;

use crate::harness::{TestSearch, hold, id, release};

/// One page as S3 describes it: (keys, common prefixes, next).
fn model(keys: &BTreeSet<String>, query: &ListQuery) -> (Vec<String>, Vec<String>, Option<String>) {
    let limit = query.limit.unwrap() as usize;
    let mut lines: Vec<(String, bool)> = Vec::new();
    let delimiter = query.delimiter.as_deref().filter(|d| !d.is_empty());
    for key in keys.iter().filter(|k| k.starts_with(&query.prefix) && k.as_str() > query.after.as_str()) {
        let rest = &key[query.prefix.len()..];
        let common = delimiter.and_then(|d| rest.find(d).map(|at| &key[..query.prefix.len() + at + d.len()]));
        let line = common.unwrap_or(key).to_owned();
        let was_shown = common.is_some() && line == query.after;
        if !was_shown && lines.last().is_none_or(|(last, _)| *last != line) {
            lines.push((line, common.is_some()));
        }
    }
    let next = (lines.len() > limit).then(|| lines[limit - 1].0.clone());
    lines.truncate(limit);
    let of = |kind| lines.iter().filter(|l| l.1 == kind).map(|l| l.0.clone()).collect();
    (of(false), of(true), next)
}

fn flat(page: ContentPage) -> (Vec<String>, Vec<String>, Option<String>) {
    (page.contents.iter().map(|c| c.name.key().to_owned()).collect(), page.prefixes, page.next)
}

async fn compare_all_pages(
    client: &SearchClient,
    bucket: &str,
    keys: &BTreeSet<String>,
    mut query: ListQuery,
) {
    for _ in 0..=keys.len() {
        let got = flat(client.list(&id(bucket), &query).await.unwrap());
        assert_eq!(got, model(keys, &query), "{keys:?} {query:?}");
        match got.2 {
            Some(next) => query.after = next,
            None => return,
        }
    }
    panic!("a listing of {} keys does not end", keys.len());
}

fn key() -> impl Strategy<Value = String> {
    "[ab/.\u{e9}\u{ffff}\u{10ffff}]{1,6}"
}

fn text() -> impl Strategy<Value = String> {
    "[ab/.\u{e9}]{0,3}"
}

#[test]
fn listings_are_what_a_naive_reading_of_the_bucket_gives() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let search = runtime.block_on(async { TestSearch::new().await.with_alice().await });
    let cases = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    });
    let keys = prop::collection::btree_set(key(), 0..30);
    let delimiter =
        prop::option::of(prop_oneof![Just("/".to_owned()), Just("ab".to_owned()), Just(String::new())]);
    let query = (text(), text(), 1u32..6, delimiter);
    runner
        .run(&(keys, prop::collection::vec(query, 1..4)), |(keys, queries)| {
            let case = cases.replace(cases.get() + 1);
            runtime.block_on(async {
                let bucket = format!("case-{case}-b");
                let node = format!("tokyo.n{case}");
                let mut items: Vec<_> = keys.iter().map(|k| hold(&format!("{bucket}/{k}"), 1)).collect();
                // Names that sort right before and after the bucket's, and one that nobody holds any more.
                items.push(hold(&format!("{bucket}-a/x"), 1));
                items.push(hold(&format!("{bucket}0/x"), 1));
                items.push(hold(&format!("{bucket}/a-gone"), 1));
                items.push(release(&format!("{bucket}/a-gone"), 1));
                search.announce(&node, 1, items).await;
                for (prefix, after, limit, delimiter) in queries {
                    let query = ListQuery { prefix, after, limit: Some(limit), delimiter };
                    compare_all_pages(&search.client, &bucket, &keys, query).await;
                }
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_common_prefix_counts_once_however_many_keys_it_hides() {
    let search = TestSearch::new().await.with_alice().await;
    let keys = (0..500).map(|i| hold(&format!("alice/photos/{i:04}.jpg"), 1));
    search.announce("tokyo.n1", 1, keys.chain([hold("alice/z.txt", 1)]).collect()).await;
    let query = ListQuery { delimiter: Some("/".into()), limit: Some(1), ..ListQuery::default() };
    let first = search.client.list(&id("alice"), &query).await.unwrap();
    assert_eq!((first.prefixes, first.next.as_deref()), (vec!["photos/".to_owned()], Some("photos/")));
    let query = ListQuery { after: "photos/".into(), ..query };
    let second = search.client.list(&id("alice"), &query).await.unwrap();
    assert_eq!(
        (second.contents[0].name.as_str(), second.prefixes.len(), second.next),
        ("alice/z.txt", 0, None)
    );
}

#[tokio::test]
async fn a_part_of_the_name_finds_contents_page_by_page() {
    let search = TestSearch::new().await.with_alice().await;
    let names = ["alice/Summer 100%.txt", "alice/summer_b.txt", "alice/winter.txt", "alice/x/SUMMER"];
    search.announce("tokyo.n1", 1, names.iter().map(|n| hold(n, 1)).collect()).await;
    let found = async |text: &str, after: &str, limit| {
        let page = search.client.find(text, after, limit).await.unwrap();
        (page.contents.iter().map(|c| c.name.to_string()).collect::<Vec<_>>(), page.next)
    };
    let (first, next) = found("summer", "", 2).await;
    assert_eq!(first, [names[0], names[1]]);
    assert_eq!(found("summer", &next.unwrap(), 2).await, (vec![names[3].to_owned()], None));
    assert_eq!(found("0%", "", 10).await.0, [names[0]]);
    assert_eq!(found("_", "", 10).await.0, [names[1]]);
    assert!(found("\\", "", 10).await.0.is_empty());
}
