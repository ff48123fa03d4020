//! The order of sources: by the time until everything would be here, with ties broken and load shared.
//!
//! 1. Sites that answer, then origins that answer, then sources whose last probe or fetch failed, which are not left
//!    out: a sole holder is asked whatever is known of it.
//! 2. In each class the *nearest* is the one with the least expected time: a round trip, and the bytes at the pace
//!    of the source, its outstanding bytes before ours.
//! 3. Those within [`BAND`] of it are equals, or within [`BAND_IN_USE`] if they are in use already, so that what is
//!    measured a little differently each time does not turn the order over. Among equals the own zone comes first,
//!    then the least distance that the operator set; what is still equal is drawn, the faster more often: so equals share.
//!    A source that has much to do is not equal any more.
//! 4. The others follow by their expected time.

use super::link::{Known, ROUND_TRIP_UNKNOWN, pace_expected};

/// Expected times in this ratio are equal...
const BAND: f64 = 1.25;
const BAND_IN_USE: f64 = 1.5;
/// ... and so are those that differ by less than this, in seconds.
const BAND_SECONDS: f64 = 0.0002;

/// A source as the order sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Contender {
    pub known: Known,
    pub is_origin: bool,
    pub same_zone: bool,
    pub distance: Option<u32>,
    /// Expected time in seconds; set by [`order`].
    pub score: f64,
    /// The same for one chunk of average length; set with the score.
    pub chunk_seconds: f64,
}

/// Why the first of an order is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no other.
    Only,
    Nearest,
    /// Of equally near ones it is in this zone.
    Zone,
    /// Of equally near ones it has the least distance that the operator set.
    Distance,
    /// Drawn among equals.
    Shared,
    /// Sites hold it, and none of them answers; or none holds it.
    Origin,
    /// None answers.
    Failing,
}

impl Reason {
    pub const ALL: [Self; 7] =
        [Self::Only, Self::Nearest, Self::Zone, Self::Distance, Self::Shared, Self::Origin, Self::Failing];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Nearest => "nearest",
            Self::Zone => "zone",
            Self::Distance => "distance",
            Self::Shared => "shared",
            Self::Origin => "origin",
            Self::Failing => "failing",
        }
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Only => "the only source",
            Self::Nearest => "nearest: least expected time",
            Self::Zone => "of equally near ones in this zone",
            Self::Distance => "of equally near ones at the least distance that was set",
            Self::Shared => "drawn among equally near ones, which share the load",
            Self::Origin => "no site that holds it answers",
            Self::Failing => "no source answers; this one may be back first",
        }
    }
}

impl Contender {
    fn class(&self) -> u8 {
        match (self.known.failures, self.is_origin) {
            (0, false) => 0,
            (0, true) => 1,
            _ => 2,
        }
    }

    fn distance(&self) -> u32 {
        self.distance.unwrap_or(u32::MAX)
    }
}

/// Seconds until `bytes` would be here. Grows with the round trip, the pace, the load and the bytes.
pub fn seconds(known: &Known, bytes: u64, pace_unmeasured: f64) -> f64 {
    let pace = known
        .pace
        .map_or(pace_unmeasured, |pace| pace_unmeasured + known.confidence * (pace - pace_unmeasured));
    known.round_trip.unwrap_or(ROUND_TRIP_UNKNOWN) + (known.load_bytes + bytes as f64) * pace
}

/// Sets every score; answers with the places of the contenders in their order, and why the first is first.
/// `random` gives numbers from 0 to 1.
pub fn order(
    contenders: &mut [Contender],
    bytes: u64,
    mut random: impl FnMut() -> f64,
) -> (Vec<usize>, Option<Reason>) {
    // A source is taken to be at least as fast as what was measured of one that is not nearer.
    let measured: Vec<(f64, f64)> =
        contenders.iter().filter_map(|c| Some((c.known.round_trip?, c.known.pace?))).collect();
    for contender in contenders.iter_mut() {
        let own = contender.known.round_trip;
        let farther = measured.iter().filter(|(far, _)| own.is_some_and(|own| far * BAND >= own));
        let pace = farther.map(|(_, pace)| *pace).fold(pace_expected(own), f64::min);
        contender.score = seconds(&contender.known, bytes, pace);
        contender.chunk_seconds = seconds(&contender.known, common::chunker::CHUNK_LEN_AVG as u64, pace);
    }
    let mut places: Vec<usize> = Vec::with_capacity(contenders.len());
    let mut reason = None;
    for class in 0..=2 {
        let of_class = || contenders.iter().enumerate().filter(move |(_, c)| c.class() == class);
        let best = of_class().map(|(_, c)| c.score).fold(f64::INFINITY, f64::min);
        let is_equal = |c: &Contender| {
            let band = if c.known.in_use { BAND_IN_USE } else { BAND };
            c.score <= (best * band).max(best + BAND_SECONDS)
        };
        let (equal, mut rest): (Vec<_>, Vec<_>) = of_class().partition(|(_, c)| is_equal(c));
        let draw = |(place, c): (usize, &Contender)| {
            // The least of such numbers is that of each contender with a chance in proportion to 1/score.
            let drawn = -(1.0 - random()).max(f64::MIN_POSITIVE).ln() * c.score;
            (!c.same_zone, c.distance(), drawn, place)
        };
        let mut equal: Vec<_> = equal.into_iter().map(draw).collect();
        equal.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
        rest.sort_by(|(_, a), (_, b)| a.score.total_cmp(&b.score));
        reason = reason.or_else(|| {
            let (first, second) = (equal.first()?, equal.get(1));
            Some(match (class, second) {
                (2, _) => Reason::Failing,
                (1, _) => Reason::Origin,
                (_, None) if contenders.len() == 1 => Reason::Only,
                (_, None) => Reason::Nearest,
                (_, Some(second)) if first.0 != second.0 => Reason::Zone,
                (_, Some(second)) if first.1 != second.1 => Reason::Distance,
                _ => Reason::Shared,
            })
        });
        places.extend(equal.into_iter().map(|(.., place)| place));
        places.extend(rest.into_iter().map(|(place, _)| place));
    }
    (places, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const MS: f64 = 1e-3;
    const MIB: f64 = (1 << 20) as f64;

    fn site(round_trip_ms: f64) -> Contender {
        let known = Known {
            round_trip: Some(round_trip_ms * MS),
            pace: Some(1.0 / (100.0 * MIB)),
            confidence: 1.0,
            load_bytes: 0.0,
            failures: 0,
            in_use: false,
        };
        Contender {
            known,
            is_origin: false,
            same_zone: false,
            distance: None,
            score: f64::NAN,
            chunk_seconds: f64::NAN,
        }
    }

    fn with(mut contender: Contender, change: impl FnOnce(&mut Contender)) -> Contender {
        change(&mut contender);
        contender
    }

    fn ordered(mut contenders: Vec<Contender>) -> (Vec<usize>, Option<Reason>) {
        let mut rng = StdRng::seed_from_u64(1);
        order(&mut contenders, 1 << 20, || rng.random())
    }

    #[test]
    fn the_nearest_comes_first_then_the_others_then_origins_and_the_silent_last() {
        let origin = with(site(0.1), |c| c.is_origin = true);
        let silent = with(site(0.1), |c| c.known.failures = 1);
        let unknown = with(site(0.1), |c| c.known.round_trip = None);
        let (places, reason) = ordered(vec![silent, origin.clone(), unknown, site(80.0), site(2.0)]);
        assert_eq!((places, reason), (vec![4, 3, 2, 1, 0], Some(Reason::Nearest)));
        assert_eq!(ordered(vec![site(80.0)]).1, Some(Reason::Only));
        assert_eq!(ordered(vec![origin]).1, Some(Reason::Origin));
        assert_eq!(ordered(vec![with(site(1.0), |c| c.known.failures = 9)]).1, Some(Reason::Failing));
        assert_eq!(ordered(Vec::new()), (Vec::new(), None));
    }

    #[test]
    fn among_equals_the_zone_decides_then_the_distance() {
        let (near, far) =
            (|c: &mut Contender| c.distance = Some(1), |c: &mut Contender| c.distance = Some(2));
        let zone = |c: &mut Contender| c.same_zone = true;
        let first = |contenders| {
            let (places, reason) = ordered(contenders);
            (places[0], reason.unwrap())
        };
        assert_eq!(first(vec![site(20.0), with(site(21.0), zone)]), (1, Reason::Zone));
        assert_eq!(first(vec![with(site(20.0), far), with(site(21.0), near)]), (1, Reason::Distance));
        assert_eq!(first(vec![site(20.0), with(site(21.0), far)]), (1, Reason::Distance));
        assert_eq!(first(vec![with(site(20.0), near), with(site(90.0), zone)]), (0, Reason::Nearest));
    }

    #[test]
    fn one_in_use_stays_an_equal_a_little_longer() {
        let in_use = with(site(28.0), |c| c.known.in_use = true);
        assert_eq!(ordered(vec![site(10.0), in_use.clone()]).1, Some(Reason::Nearest));
        // (28 + 10) / (18 + 10) is above one band and below the other.
        assert_eq!(ordered(vec![site(18.0), site(28.0)]).1, Some(Reason::Nearest));
        assert_eq!(ordered(vec![site(18.0), in_use]).1, Some(Reason::Shared));
    }

    #[test]
    fn a_source_with_much_to_do_is_left_to_the_others_and_asked_all_the_same_if_it_is_the_only_one() {
        let busy = with(site(2.0), |c| c.known.load_bytes = 64.0 * MIB);
        assert_eq!(ordered(vec![busy.clone(), site(20.0)]).0, [1, 0]);
        assert_eq!(ordered(vec![busy]), (vec![0], Some(Reason::Only)));
    }

    #[test]
    fn one_of_which_nothing_was_fetched_is_as_fast_as_what_is_not_nearer() {
        let fetched = with(site(20.0), |c| c.known.pace = Some(1.0 / (900.0 * MIB)));
        let fresh = with(site(20.0), |c| c.known.pace = None);
        assert_eq!(ordered(vec![fetched.clone(), fresh]).1, Some(Reason::Shared));
        let farther = with(site(60.0), |c| c.known.pace = None);
        assert_eq!(ordered(vec![fetched, farther]).1, Some(Reason::Nearest));
    }

    fn contender() -> impl Strategy<Value = Contender> {
        let known = (
            prop::option::of(1e-5..2.0f64),
            prop::option::of(1e-9..1e-4f64),
            0.0..=1.0f64,
            prop_oneof![Just(0.0), 0.0..1e9f64],
            prop_oneof![3 => Just(0u32), 1 => 1..20u32],
            any::<bool>(),
        );
        (known, any::<bool>(), any::<bool>(), prop::option::of(0..4u32)).prop_map(
            |(
                (round_trip, pace, confidence, load_bytes, failures, in_use),
                is_origin,
                same_zone,
                distance,
            )| {
                Contender {
                    known: Known { round_trip, pace, confidence, load_bytes, failures, in_use },
                    is_origin,
                    same_zone,
                    distance,
                    chunk_seconds: f64::NAN,
                    score: f64::NAN,
                }
            },
        )
    }

    proptest! {
        /// Every source has one place; those that fail come last, and before them the origins.
        #[test]
        fn an_order_is_total(
            mut contenders in prop::collection::vec(contender(), 0..40), bytes in 0..1u64 << 40, seed: u64,
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let (places, reason) = order(&mut contenders, bytes, || rng.random());
            let mut sorted = places.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..contenders.len()).collect::<Vec<_>>());
            prop_assert_eq!(reason.is_some(), !contenders.is_empty());
            prop_assert!(contenders.iter().all(|c| c.score.is_finite() && c.score > 0.0));
            let classes: Vec<u8> = places.iter().map(|place| contenders[*place].class()).collect();
            prop_assert!(classes.is_sorted(), "{:?}", classes);
            // Whatever breaks ties, the first is not much worse than the best of its class.
            if let Some(first) = places.first() {
                let first = &contenders[*first];
                let of_class = contenders.iter().filter(|c| c.class() == first.class());
                let best = of_class.map(|c| c.score).fold(f64::INFINITY, f64::min);
                prop_assert!(first.score <= (best * BAND_IN_USE).max(best + BAND_SECONDS));
            }
        }

        /// More round trip, a slower pace, more load or more bytes never make the expected time less.
        #[test]
        fn the_expected_time_is_monotone(
            contender in contender(), more in 0.0..10.0f64, bytes in 0..1u64 << 40, unmeasured in 1e-9..1e-4f64,
        ) {
            let time = |known: &Known, bytes| seconds(known, bytes, unmeasured);
            let known = contender.known;
            let base = time(&known, bytes);
            let farther = Known { round_trip: known.round_trip.map(|r| r + more), ..known };
            let slower = Known { pace: known.pace.map(|p| p * (1.0 + more)), ..known };
            let busier = Known { load_bytes: known.load_bytes + more * 1e6, ..known };
            for worse in [farther, slower, busier] {
                prop_assert!(time(&worse, bytes) >= base * (1.0 - 1e-12));
            }
            prop_assert!(time(&known, bytes + 1000) >= base);
        }

        /// Equals are drawn alike, within what chance allows: none gets all, and none nothing.
        #[test]
        fn equals_share(count in 2..8usize, seed: u64, round_trip_ms in 0.1..200.0f64) {
            const DRAWS: u32 = 2000;
            let mut rng = StdRng::seed_from_u64(seed);
            let mut first = vec![0u32; count];
            for _ in 0..DRAWS {
                let mut contenders = vec![site(round_trip_ms); count];
                first[order(&mut contenders, 1 << 20, || rng.random()).0[0]] += 1;
            }
            let fair = f64::from(DRAWS) / count as f64;
            for drawn in &first {
                prop_assert!((f64::from(*drawn) - fair).abs() < 6.0 * fair.sqrt(), "{first:?}");
            }
        }

        /// As each choice adds to the load of the chosen, outstanding bytes stay even between equals.
        #[test]
        fn outstanding_bytes_stay_even_between_equals(count in 2..6usize, seed: u64) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut contenders = vec![site(20.0); count];
            for _ in 0..400 {
                let chosen = order(&mut contenders, 8 << 20, || rng.random()).0[0];
                contenders[chosen].known.load_bytes += (8 << 20) as f64;
            }
            let loads = contenders.iter().map(|c| c.known.load_bytes);
            let (least, most) = (loads.clone().fold(f64::INFINITY, f64::min), loads.fold(0.0, f64::max));
            prop_assert!(most <= least * 1.5 + 2.0 * (8 << 20) as f64, "{least} to {most}");
        }
    }
}
