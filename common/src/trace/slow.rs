//! The slowest requests of the last hour, with their stages: what figures cannot tell of a single one.
//!
//! Bounded: [`KEPT_MAX`] entries, none with anything of a length that a client chooses but the request id, which is
//! short. A request that is not among the slowest costs two loads; others take a lock for a moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde::Serialize;

use super::Trace;
use crate::time::{Clock, UnixMillis};

/// Requests that are kept.
pub const KEPT_MAX: usize = 100;
/// How long they are.
pub const KEPT_TIME: Duration = Duration::from_secs(3600);

/// `GET /v1/debug/slow` on the admin listener.
#[derive(Debug, Clone, Serialize)]
pub struct SlowRequest {
    /// When it was answered.
    pub at: UnixMillis,
    pub method: String,
    /// The route, as in `/v1/contents/{bucket}/{*key}`: no names of contents.
    pub route: Arc<str>,
    pub status: u16,
    /// Until the head of the answer, without what it waited on the caller's wish.
    pub total_ms: f64,
    pub stages: Vec<StageTime>,
    pub request: Arc<str>,
    pub trace_id: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageTime {
    pub stage: &'static str,
    pub ms: f64,
}

/// One server's.
#[derive(Default)]
pub struct SlowRequests {
    kept: Mutex<Vec<(Instant, Duration, SlowRequest)>>,
    bar: Bar,
}

/// What is known without the lock: a request that took no longer than `micros` is not among the slowest until `until`.
#[derive(Default)]
struct Bar {
    micros: AtomicU64,
    /// Seconds since the server's first request was kept.
    until_seconds: AtomicU64,
    zero: std::sync::OnceLock<Instant>,
}

impl Bar {
    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(*self.zero.get_or_init(|| now)).as_secs()
    }

    fn is_below(&self, took: Duration, now: Instant) -> bool {
        took.as_micros() <= u128::from(self.micros.load(Ordering::Relaxed))
            && self.seconds(now) < self.until_seconds.load(Ordering::Relaxed)
    }

    /// A request that took longer than `least` is kept; any is, once the `oldest` of those kept is not any more.
    fn set(&self, least: Duration, oldest: Instant) {
        self.micros.store(u64::try_from(least.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let until = self.seconds(oldest).saturating_add(KEPT_TIME.as_secs());
        self.until_seconds.store(until, Ordering::Relaxed);
    }
}

impl SlowRequests {
    /// Keeps a request that was answered if it is among the slowest.
    pub fn note(
        &self,
        trace: &Trace,
        total: Duration,
        method: &Method,
        route: Option<&str>,
        status: StatusCode,
    ) {
        self.note_at(Instant::now(), trace, total, method, route, status);
    }

    fn note_at(
        &self,
        now: Instant,
        trace: &Trace,
        total: Duration,
        method: &Method,
        route: Option<&str>,
        status: StatusCode,
    ) {
        let took = total.saturating_sub(trace.waited());
        if self.bar.is_below(took, now) {
            return;
        }
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let request = SlowRequest {
            at: Clock::System.now(),
            method: method.to_string(),
            route: route.unwrap_or("no route").into(),
            status: status.as_u16(),
            total_ms: ms(took),
            stages: trace
                .stages()
                .map(|(stage, took)| StageTime { stage: stage.name(), ms: ms(took) })
                .collect(),
            request: trace.request().clone(),
            trace_id: trace.id().to_string(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(at, ..)| now.duration_since(*at) < KEPT_TIME);
        let place = kept.partition_point(|(_, other, _)| *other >= took);
        kept.insert(place, (now, took, request));
        kept.truncate(KEPT_MAX);
        if kept.len() == KEPT_MAX
            && let (Some((_, least, _)), Some(oldest)) = (kept.last(), kept.iter().map(|(at, ..)| *at).min())
        {
            self.bar.set(*least, oldest);
        }
    }

    /// The slowest first.
    pub fn list(&self) -> Vec<SlowRequest> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = kept.iter().filter(|(at, ..)| at.elapsed() < KEPT_TIME);
        fresh.map(|(.., request)| request.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn note(slow: &SlowRequests, at: Instant, millis: u64) {
        let trace = Trace::of_request(&HeaderMap::new(), || format!("r{millis}").into());
        let total = Duration::from_millis(millis);
        slow.note_at(at, &trace, total, &Method::GET, Some("/v1/x/{y}"), StatusCode::OK);
    }

    fn totals(slow: &SlowRequests) -> Vec<u64> {
        slow.list().iter().map(|request| request.total_ms as u64).collect()
    }

    #[test]
    fn the_slowest_are_kept_slowest_first() {
        let (slow, now) = (SlowRequests::default(), Instant::now());
        // Each once, in no order.
        for step in 0..997 {
            note(&slow, now, step * 31 % 997);
        }
        assert_eq!(totals(&slow), (897..997).rev().collect::<Vec<_>>());
        let first = &slow.list()[0];
        assert_eq!((&*first.request, &*first.route, first.status), ("r996", "/v1/x/{y}", 200));
    }

    #[test]
    fn an_hour_later_they_make_room() {
        let (slow, later) = (SlowRequests::default(), Instant::now());
        let Some(now) = later.checked_sub(KEPT_TIME) else { return };
        for millis in 500..500 + KEPT_MAX as u64 {
            note(&slow, now, millis);
        }
        note(&slow, now + Duration::from_secs(1), 7);
        note(&slow, later, 7);
        assert_eq!(totals(&slow), [7]);
    }

    #[tokio::test]
    async fn what_a_caller_wished_to_wait_is_not_slow() {
        let slow = SlowRequests::default();
        let trace = Trace::of_request(&HeaderMap::new(), || "poll".into());
        let waited = Duration::from_secs(20);
        trace.clone().run(async { super::super::note(crate::trace::Stage::Wait, waited) }).await;
        let total = waited + Duration::from_millis(3);
        slow.note(&trace, total, &Method::GET, None, StatusCode::OK);
        let listed = slow.list();
        assert_eq!(
            (listed[0].total_ms, listed[0].stages[0].clone()),
            (3.0, StageTime { stage: "wait", ms: 20_000.0 })
        );
    }
}
