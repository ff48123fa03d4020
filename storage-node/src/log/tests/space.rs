//! What fits, what is refused, and what is counted.

use super::*;
use crate::log::compactor::choose;

#[test]
fn equal_chunks_in_one_commit_are_stored_once() {
    let mut node = Node::new();
    let before = node.log.used_bytes();
    node.apply(&[Op::put(1, 8192); 5]);
    // The segment's header, the frame's, the chunk.
    assert_eq!(node.log.used_bytes() - before, 4096 + 4096 + 8192);
    assert_eq!(node.store.stats().chunks, 1);
}

#[test]
fn a_deleted_chunk_no_longer_counts_as_used() {
    let mut node = Node::new();
    node.apply(&[Op::put(1, 40_000)]);
    let used = node.log.used_bytes();
    node.apply(&[Op::delete(1, 40_000)]);
    assert_eq!(node.log.used_bytes(), used - 40_960 + 4096);
    let after = node.log.used_bytes();
    assert_eq!(node.reopen().unwrap().log.used_bytes(), after, "and so after a restart");
}

#[test]
fn a_replay_goes_on_after_any_position() {
    let mut node = Node::new();
    for group in typical_groups().iter().filter(|group| !matches!(group[0], Op::Floor | Op::Compact)) {
        node.apply(group);
    }
    let all = node.rows();
    assert_eq!(all.len(), 6);
    assert!(all.is_sorted());
    for (i, (position, _)) in all.iter().enumerate() {
        assert_eq!(node.rows_after(*position).unwrap(), all[i + 1..]);
    }
    let beyond = LogPosition(all[5].0.0 + (1 << 30));
    assert!(matches!(node.rows_after(beyond), Err(ReplayError::BeyondEnd { .. })));
    let mut visited = 0;
    let stopped = node.log.replay_rows(LogPosition(0), &mut |_, _| {
        visited += 1;
        if visited == 3 { Err("enough".into()) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(ReplayError::Visit(_))) && visited == 3);
}

#[test]
fn a_full_device_refuses_chunks_and_still_takes_deletions_and_rows() {
    let mut node = Node::new();
    let mut stored = 0;
    while node.apply(&[Op::put(stored, 50_000)]) == [true] {
        stored += 1;
    }
    // Two chunks in each of the segments that are not reserved.
    assert_eq!(stored, 2 * (SLOTS - RESERVED_SEGMENTS as u64));
    assert_eq!(node.apply(&[Op::delete(0, 50_000), Op::rows(0, 100)]), [true, true]);
    let mut rows = 1;
    while node.apply(&[Op::rows(rows, 30_000)]) == [true] {
        rows += 1;
    }
    assert_eq!(rows, 1 + 2 * 3, "three in each segment that is kept for them");
    let mut node = node.reopen().unwrap();
    assert_eq!(node.rows().len() as u64, rows);
    assert_eq!(node.store.stats().chunks, stored - 1);
    assert!(node.get(stored - 1, 50_000).is_ok());
    // The floor lets the rows' segments go, and life goes on.
    assert_eq!(node.apply(&[Op::Floor]), [true]);
    let victim = choose(node.shared(), |_| false).unwrap();
    assert!(victim.is_pressed && node.compact(victim.segment, usize::MAX));
    assert_eq!(node.apply(&[Op::rows(rows, 30_000), Op::delete(1, 50_000)]), [true, true]);
}

#[test]
fn a_file_system_without_room_is_a_full_store_and_not_a_broken_one() {
    let sim = SimIo::new(empty_image(), Some((4, Fate::NoSpace)));
    let mut node = Node::open(sim).unwrap();
    assert_eq!(node.apply(&[Op::put(1, 50_000)]), [true]);
    assert_eq!(node.apply(&[Op::put(2, 100_000)]), [false]);
    assert_eq!(node.apply(&[Op::put(3, 50), Op::delete(1, 50_000)]), [true, true]);
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_and_chunks_can_be_read() {
    let sim = SimIo::new(empty_image(), Some((4, Fate::Lost)));
    let mut node = Node::open(sim).unwrap();
    assert_eq!(node.apply(&[Op::put(1, 500)]), [true]);
    assert_eq!(node.apply(&[Op::rows(2, 5)]), [false]);
    assert_eq!(node.apply(&[Op::rows(3, 5)]), [false]);
    assert!(node.rows_after(LogPosition(0)).is_ok_and(|rows| rows.is_empty()));
    let node = node.reopen().unwrap();
    assert!(node.rows().is_empty());
    assert_eq!(node.get(1, 500).unwrap(), content(1, 500));
}

#[test]
fn an_entry_that_no_segment_holds_is_refused() {
    let mut node = Node::new();
    assert_eq!(node.apply(&[Op::rows(1, SEGMENT as usize), Op::rows(2, 9)]), [false, true]);
}

#[test]
fn a_small_device_has_small_segments() {
    assert_eq!(segment_bytes_for(300 << 20), 16 << 20);
    assert_eq!(segment_bytes_for(3 << 30), 32 << 20);
    assert_eq!(segment_bytes_for(20 << 30), 64 << 20);
}

#[tokio::test]
async fn a_closed_log_has_committed_what_was_queued_and_takes_no_more() {
    let sim = SimIo::new(empty_image(), None);
    let device: Arc<dyn BlockIo> = Arc::new(sim.clone());
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    let log =
        tokio::task::spawn_blocking(move || Log::open(device, OPTIONS, metrics)).await.unwrap().unwrap();
    let appends = (0..100u64).map(|name| log.append_rows(content(name, 20)));
    let (positions, ()) =
        futures_util::future::join(futures_util::future::join_all(appends), log.close()).await;
    assert!(positions.iter().all(Result::is_ok));
    assert!(matches!(log.append_rows(Bytes::new()).await, Err(LogError::Stopped)));
    let rows = tokio::task::spawn_blocking(move || Node::open(SimIo::new(sim.image(), None)).unwrap().rows());
    let replayed: Vec<LogPosition> = rows.await.unwrap().into_iter().map(|(position, _)| position).collect();
    let acknowledged: Vec<LogPosition> = positions.into_iter().map(Result::unwrap).collect();
    assert_eq!(replayed, acknowledged);
}

#[test]
fn an_empty_rows_entry_is_an_entry() {
    let mut node = Node::new();
    node.apply(&[Op::rows(1, 0)]);
    node.apply(&[Op::put(1, 100_000)]);
    node.apply(&[Op::put(2, 100_000)]);
    assert_eq!(node.reopen().unwrap().rows().len(), 1, "also once its segment is sealed");
}
