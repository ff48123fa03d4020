//! Power is lost at every write, in every way; twice in a row; and while several writes are under way.
//!
//! `DOZO_CRASH_EXHAUST=1` lets each sector arrive alone also where a run of the tests takes a part of them for the sake of
//! time: minutes instead of seconds.

use super::*;

/// A node with a past: segments that are mostly dead, copies and tombstones in several places, a floor.
fn lived_in() -> (Vec<u8>, Model) {
    let (put, delete, rows) = (Op::put, Op::delete, Op::rows);
    let mut model = Model::default();
    let groups = [
        vec![rows(1, 300), put(1, 9000), put(2, 40_000), put(3, 40_000)],
        vec![put(4, 50_000), rows(2, 20), put(5, 50_000), delete(3, 40_000)],
        vec![rows(3, 30), Op::Floor],
        vec![put(6, 100_000), delete(2, 40_000), delete(4, 50_000)],
        vec![Op::Floor, rows(4, 40), put(7, 4096)],
        vec![put(3, 40_000), put(8, 60_000)],
    ];
    let sim = SimIo::new(empty_image(), None);
    let mut node = Node::open(sim.clone()).unwrap();
    for group in &groups {
        let acknowledged = node.apply(group);
        assert!(acknowledged.iter().all(|ok| *ok));
        model.note(group, &acknowledged);
    }
    model.settle(&node);
    assert!(node.oldest().is_some(), "there is something to compact");
    (sim.image(), model)
}

/// What is done after a crash: a bit of everything.
fn aftermath() -> Vec<Vec<Op>> {
    vec![
        vec![Op::put(90, 5000), Op::delete(1, 9000), Op::rows(90, 10)],
        vec![Op::Compact],
        vec![Op::Floor],
        vec![Op::Compact],
    ]
}

/// All ways in which one write of so many sectors can end.
fn fates(sectors: usize) -> impl Iterator<Item = Fate> {
    [Fate::Lost, Fate::Unanswered].into_iter().chain((0..sectors).map(Fate::OnlySector))
}

/// All of [`fates`] in an exhaustive run, otherwise those of the first sectors.
fn some_fates(sectors: usize, first: usize) -> Vec<Fate> {
    let is_exhaustive = std::env::var_os("DOZO_CRASH_EXHAUST").is_some();
    fates(if is_exhaustive { sectors } else { sectors.min(first) }).collect()
}

/// Runs `ops` with a crash at each write of theirs, in each of `fates`; then goes on, and looks again after that.
fn crash_everywhere(
    image: &[u8],
    model: &Model,
    ops: &[Vec<Op>],
    fates: impl Fn(usize) -> Vec<Fate>,
) -> usize {
    let dry = SimIo::new(image.to_vec(), None);
    let mut node = Node::open(dry.clone()).unwrap();
    let before = dry.write_sectors().len();
    for group in ops {
        node.apply(group);
    }
    drop(node);
    let mut crashes = 0;
    for (write, sectors) in dry.write_sectors().into_iter().enumerate().skip(before) {
        for fate in fates(sectors) {
            let mut model = model.clone();
            let after = live(image.to_vec(), ops, Some((write as u64, fate)), &mut model);
            let after = live(after, &aftermath(), None, &mut model);
            live(after, &[], None, &mut model);
            crashes += 1;
        }
    }
    crashes
}

/// Crash-state exhaustion over short histories, as in B3 and CrashMonkey (OSDI 2018): most bugs of file systems were
/// found with one to three operations.
#[test]
fn short_histories_survive_a_crash_at_each_write_with_each_sector_alone() {
    let (image, model) = lived_in();
    let alphabet = [
        Op::put(20, 100),
        Op::put(3, 40_000),
        Op::put(21, 9000),
        Op::delete(6, 100_000),
        Op::delete(7, 4096),
        Op::rows(20, 50),
        Op::Floor,
        Op::Compact,
    ];
    let mut crashes = 0;
    // One operation, and two in one commit or in two.
    for first in alphabet {
        crashes += crash_everywhere(&image, &model, &[vec![first]], |sectors| fates(sectors).collect());
        for second in alphabet {
            let apart = [vec![first], vec![second]];
            crashes += crash_everywhere(&image, &model, &apart, |sectors| some_fates(sectors, 9));
        }
    }
    println!("{crashes} crashes");
    assert!(crashes > 1000, "{crashes}");
}

#[test]
fn histories_of_three_survive_a_crash_at_each_write() {
    let (image, model) = lived_in();
    let alphabet =
        [Op::put(20, 100), Op::put(3, 40_000), Op::delete(7, 4096), Op::rows(20, 50), Op::Floor, Op::Compact];
    let mut crashes = 0;
    for first in alphabet {
        for second in alphabet {
            for third in alphabet {
                let ops = [vec![first], vec![second], vec![third]];
                crashes += crash_everywhere(&image, &model, &ops, |sectors| some_fates(sectors, 1));
            }
        }
    }
    assert!(crashes > 1000, "{crashes}");
}

#[test]
fn everything_acknowledged_survives_two_crashes_at_any_writes() {
    let groups = typical_groups();
    let node = SimIo::new(empty_image(), None);
    {
        let mut node = Node::open(node.clone()).unwrap();
        for group in &groups {
            assert!(node.apply(group).iter().all(|ok| *ok));
        }
    }
    let writes = node.writes();
    assert!(writes > 8, "{writes}");
    for at in 0..writes {
        for fate in [Fate::Lost, Fate::Unanswered, Fate::Torn(1), Fate::Torn(at + 77)] {
            // Then life goes on in the same place, and ends in a second crash, also one of the recovery itself.
            for second in [0, 1, 2, 4] {
                assert_survives(&[
                    (groups.clone(), Some((at, fate))),
                    (groups.clone(), Some((second, fate))),
                ]);
            }
        }
    }
}

/// Two frames are under way at once when much is waiting; power may take any part of either.
#[test]
fn frames_under_way_together_are_all_there_or_not_at_all() {
    let (image, model) = lived_in();
    for seed in 0..400u64 {
        let sim = SimIo::new(image.clone(), None);
        let mut node = Node::open(sim.clone()).unwrap();
        let mut model = model.clone();
        // A new segment: its header is not to be among what is under way.
        let begin = [Op::put(59, 30_000)];
        let begun = node.apply(&begin);
        model.note(&begin, &begun);
        sim.hold();
        let first = [Op::rows(60, 100), Op::put(60, 20_000)];
        let second = [Op::put(61, 700), Op::rows(61, 100), Op::delete(7, 4096)];
        let mut answers: Vec<Answer> = first.iter().map(|op| node.send(*op)).collect();
        node.appender.catch_up();
        // The second frame goes out beside the first, as it would with enough waiting.
        let more: Vec<Answer> = second.iter().map(|op| node.send(*op)).collect();
        node.appender.overlap_anything();
        node.appender.catch_up();
        assert_eq!(sim.held(), 2);
        answers.extend(more);
        let power_lost = sim.image_after_power_loss(seed);
        let none = |answer: &mut Answer| !answer.is_ok(&mut LogPosition(0));
        assert!(answers.iter_mut().all(none), "nothing is acknowledged before it is durable");
        let ops: Vec<Op> = first.into_iter().chain(second).collect();
        model.note(&ops, &vec![false; ops.len()]);
        let after = live(power_lost, &aftermath(), None, &mut model);
        live(after, &[], None, &mut model);
    }
}

#[test]
fn frames_that_end_out_of_order_are_acknowledged_in_order() {
    let sim = SimIo::new(empty_image(), None);
    let mut node = Node::open(sim.clone()).unwrap();
    node.apply(&[Op::rows(1, 10)]);
    sim.hold();
    let mut first = node.send(Op::put(1, 9000));
    node.appender.catch_up();
    let mut second = [node.send(Op::put(1, 9000)), node.send(Op::delete(1, 9000)), node.send(Op::put(2, 10))];
    node.appender.overlap_anything();
    node.appender.catch_up();
    assert_eq!(sim.held(), 2);
    // Newest first.
    sim.finish();
    node.appender.catch_up();
    let mut rows = LogPosition(0);
    assert!(first.is_ok(&mut rows) && second.iter_mut().all(|answer| answer.is_ok(&mut rows)));
    assert!(matches!(node.get(1, 9000), Err(StoreError::NotFound)), "put, then deleted");
    assert!(node.get(2, 10).is_ok());
    assert_eq!(node.reopen().unwrap().store.stats().chunks, 1);
}

mod random {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::{Just, Strategy, any, prop_oneof};

    use super::*;

    fn op() -> impl Strategy<Value = Op> {
        let len = prop_oneof![0..200usize, Just(4096usize), 1..40_000usize];
        // Few names, so that chunks are deleted and come again.
        prop_oneof![
            6 => (0..12u64).prop_map(|name| Op::put(name, (name * 3571) as usize)),
            3 => (0..12u64).prop_map(|name| Op::delete(name, (name * 3571) as usize)),
            3 => (any::<u64>(), len).prop_map(|(name, len)| Op::rows(name, len)),
            1 => Just(Op::Floor),
            2 => Just(Op::Compact),
        ]
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::Lost),
            Just(Fate::Unanswered),
            any::<u64>().prop_map(Fate::Torn),
            Just(Fate::NoSpace)
        ]
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, ..Default::default() })]
        #[test]
        fn a_node_that_dies_again_and_again_keeps_what_it_acknowledged(
            lives in vec((vec(vec(op(), 1..10), 0..10), option::of((0..20u64, fate()))), 1..6)
        ) {
            assert_survives(&lives);
        }
    }
}
