//! Freeing segments: what is needed stays, what is not does not come back, and space is had again.

use super::*;
use crate::log::compactor::choose;

/// Fills two segments, a chunk of 50,000 bytes twice in each, and begins a third.
fn two_full_segments() -> Node {
    let mut node = Node::new();
    for name in 0..5 {
        assert_eq!(node.apply(&[Op::put(name, 50_000)]), [true]);
    }
    assert_eq!(node.shared().segments.all().len(), 3);
    node
}

#[test]
fn a_segment_is_freed_and_its_chunks_are_found_at_the_end_of_the_log() {
    let mut node = two_full_segments();
    node.apply(&[Op::delete(0, 50_000)]);
    let used = node.log.used_bytes();
    let segment = node.oldest().unwrap();
    assert!(node.compact(segment, usize::MAX));
    assert!(!node.shared().segments.contains(segment.sequence));
    assert!(node.log.used_bytes() <= used, "nothing is counted twice");
    for node in [&node.reopen().unwrap()] {
        assert!(matches!(node.get(0, 50_000), Err(StoreError::NotFound)));
        for name in 1..5 {
            assert_eq!(node.get(name, 50_000).unwrap(), content(name, 50_000));
        }
        assert_eq!(node.store.stats().chunks, 4);
    }
}

#[test]
fn a_tombstone_lives_as_long_as_what_it_speaks_of() {
    let mut node = two_full_segments();
    let first = node.oldest().unwrap();
    // The tombstone of a chunk in the first segment lies in the third, which then fills up and is freed first.
    node.apply(&[Op::delete(0, 50_000)]);
    for name in 5..8 {
        node.apply(&[Op::put(name, 50_000)]);
    }
    let third = node.shared().segments.all()[2];
    assert!(node.compact(third, usize::MAX));
    let mut node = node.reopen().unwrap();
    assert!(matches!(node.get(0, 50_000), Err(StoreError::NotFound)), "its copy is still on the disk");
    // Once the first segment is gone nothing needs the tombstone any more.
    assert!(node.compact(first, usize::MAX));
    let tombstones = |node: &Node| -> usize {
        let shared = node.shared();
        let is_tombstone = |entry: &&format::Entry| matches!(entry, format::Entry::Tombstone { .. });
        let of = |segment: &Segment| {
            let footer = contents::contents_of(&*shared.io, &shared.superblock, segment).unwrap();
            footer.entries.iter().filter(is_tombstone).count()
        };
        shared.segments.all().iter().map(of).sum()
    };
    assert_eq!(tombstones(&node), 1);
    let holder = node.shared().segments.all().iter().find(|s| s.sequence > third.sequence).copied().unwrap();
    for name in 8..12 {
        node.apply(&[Op::put(name, 50_000)]);
    }
    assert!(node.compact(holder, usize::MAX));
    assert_eq!(tombstones(&node), 0);
    assert!(matches!(node.reopen().unwrap().get(0, 50_000), Err(StoreError::NotFound)));
}

#[test]
fn a_chunk_that_was_moved_and_then_deleted_does_not_come_back_from_its_first_place() {
    let mut node = two_full_segments();
    let first = node.oldest().unwrap();
    // The move is done, the segment is not freed: a crash in between.
    assert!(node.compact(first, 1));
    let mut node = node.reopen().unwrap();
    assert_eq!(node.store.stats().chunks, 5);
    node.apply(&[Op::delete(0, 50_000)]);
    // The second copy's segment goes, and with it every tombstone that speaks of it.
    for name in 5..9 {
        node.apply(&[Op::put(name, 50_000)]);
    }
    let copies: Vec<Segment> =
        node.shared().segments.all().into_iter().filter(|s| s.sequence > 2 && s.sequence < 6).collect();
    for segment in copies {
        assert!(node.compact(segment, usize::MAX));
        node = node.reopen().unwrap();
        assert!(matches!(node.get(0, 50_000), Err(StoreError::NotFound)));
    }
    assert!(node.shared().segments.contains(first.sequence));
}

#[test]
fn what_is_deleted_while_it_is_being_moved_stays_deleted() {
    let mut node = two_full_segments();
    let segment = node.oldest().unwrap();
    let log = node.log.clone();
    let mut compaction = Compaction::begin(log.shared(), segment).unwrap();
    let step = compaction.step().unwrap();
    assert_eq!(step.work.len(), 2);
    // The deletion is queued behind one move and before the other.
    let mut works = step.work.into_iter();
    node.log.0.messages.send(Message::Work(works.next().unwrap())).unwrap();
    let mut answers = [node.send(Op::delete(0, 50_000)), node.send(Op::delete(1, 50_000))];
    node.log.0.messages.send(Message::Work(works.next().unwrap())).unwrap();
    node.appender.catch_up();
    assert!(answers.iter_mut().all(|answer| answer.is_ok(&mut LogPosition(0))));
    assert!(step.answers.into_iter().all(|mut answer| matches!(answer.try_recv(), Ok(Ok(())))));
    assert!(compaction.step().unwrap().work.is_empty());
    compaction.finish().unwrap();
    let node = node.reopen().unwrap();
    assert_eq!(node.store.stats().chunks, 3);
}

#[test]
fn a_reader_that_was_overtaken_by_a_compaction_finds_the_chunk_in_its_new_place() {
    let mut node = two_full_segments();
    let old = node.shared().index.get(&hash_of(0, 50_000)).unwrap();
    let segment = node.oldest().unwrap();
    assert!(node.compact(segment, usize::MAX));
    // The slot gets other bytes before the reader gets to it.
    node.sim.tamper(|disk| disk[old.offset() as usize..][..50_000].fill(3));
    assert_eq!(node.get(0, 50_000).unwrap(), content(0, 50_000));
}

#[test]
fn a_damaged_chunk_does_not_keep_its_segment() {
    let mut node = two_full_segments();
    let at = find(&node.sim.image(), &content(1, 50_000));
    node.sim.tamper(|disk| disk[at + 40_000] ^= 1);
    let segment = node.oldest().unwrap();
    assert!(node.compact(segment, usize::MAX));
    let node = node.reopen().unwrap();
    assert!(matches!(node.get(1, 50_000), Err(StoreError::NotFound)), "it waits for a good copy");
    assert_eq!(node.get(0, 50_000).unwrap(), content(0, 50_000));
}

#[test]
fn rows_that_are_needed_keep_their_segment_until_the_floor_is_above_them() {
    let mut node = Node::new();
    node.apply(&[Op::rows(1, 100), Op::put(1, 90_000)]);
    node.apply(&[Op::put(2, 100_000)]);
    node.apply(&[Op::rows(2, 100), Op::delete(1, 90_000)]);
    assert!(choose(node.shared(), |_| false).is_none(), "the first rows are needed");
    node.apply(&[Op::Floor]);
    let victim = choose(node.shared(), |_| false).unwrap();
    assert_eq!((victim.segment.sequence, victim.is_pressed), (1, false));
    assert!(node.compact(victim.segment, usize::MAX));
    let node = node.reopen().unwrap();
    assert_eq!(node.log.floor(), node.last_rows, "the floor is known again");
    assert!(node.rows().is_empty());
    let reclaimed = node.rows_after(LogPosition(1)).unwrap_err();
    assert!(matches!(reclaimed, ReplayError::Reclaimed { .. }), "{reclaimed}");
}

#[test]
fn on_a_full_device_what_is_deleted_can_be_used_again() {
    let mut node = Node::new();
    let mut stored = 0;
    while node.apply(&[Op::put(stored, 25_000)]) == [true] {
        stored += 1;
    }
    // One chunk in each segment: the cheapest segment still holds three quarters.
    for name in (0..stored).step_by(4) {
        assert_eq!(node.apply(&[Op::delete(name, 25_000)]), [true]);
    }
    let mut freed = 0;
    while let Some(victim) = choose(node.shared(), |_| false) {
        assert!(node.compact(victim.segment, usize::MAX), "it always gains, so it always has room");
        freed += 1;
        assert!(freed < 100, "it comes to an end");
    }
    let mut again = 0;
    while node.apply(&[Op::put(1000 + again, 25_000)]) == [true] {
        again += 1;
    }
    assert!(again * 25_000 >= stored / 4 * 25_000 / 2, "{again} of {} came back", stored / 4);
    let node = node.reopen().unwrap();
    for name in (0..stored).filter(|name| name % 4 != 0) {
        assert!(node.get(name, 25_000).is_ok(), "{name}");
    }
}
