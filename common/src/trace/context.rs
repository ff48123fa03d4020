//! Trace context as the W3C defines it: `traceparent` of version 00, read strictly, and `tracestate`, passed on as it is.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Length of a `traceparent` of version 00; later versions may be longer.
const LEN: usize = 55;
/// A longer `tracestate` is dropped.
const STATE_LEN_MAX: usize = 512;

/// Never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// One server's part of a trace. Never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where a request is in its trace.
#[derive(Debug, Clone)]
pub struct TraceContext {
    pub trace: TraceId,
    /// This server's part.
    pub span: SpanId,
    /// The caller's part; `None`: the trace begins here.
    pub parent: Option<SpanId>,
    /// Whether the trace is to be exported.
    pub sampled: bool,
    pub state: Option<HeaderValue>,
}

impl TraceContext {
    /// Begins a trace.
    pub fn root() -> Self {
        let trace = TraceId((u128::from(random_id()) << 64) | u128::from(random_id()));
        Self { trace, span: SpanId(random_id()), parent: None, sampled: is_sampled(trace), state: None }
    }

    /// Carries the caller's trace on; begins one if there is none, or none that is valid.
    pub fn of_headers(headers: &HeaderMap) -> Self {
        let mut given = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return Self::root() };
        let Some((trace, parent, sampled)) = parse(value.as_bytes()) else { return Self::root() };
        // Several lines of it are one list, which few senders split: the first alone would be a part of it.
        let mut states = headers.get_all(TRACESTATE).iter();
        let state = match (states.next(), states.next()) {
            (Some(state), None) if state.len() <= STATE_LEN_MAX => Some(state.clone()),
            _ => None,
        };
        Self { trace, span: SpanId(random_id()), parent: Some(parent), sampled, state }
    }

    /// For calls: their parent is this server's part.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

fn parse(text: &[u8]) -> Option<(TraceId, SpanId, bool)> {
    let (version, rest) = (hex(text.get(..2)?)?, text.get(LEN..)?);
    let ends_well = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let dashes = [2, 35, 52].iter().all(|place| text[*place] == b'-');
    if !ends_well || !dashes {
        return None;
    }
    let (trace, span, flags) = (hex(&text[3..35])?, hex(&text[36..52])?, hex(&text[53..55])?);
    let span = u64::try_from(span).ok()?;
    (trace != 0 && span != 0).then_some((TraceId(trace), SpanId(span), flags & 1 == 1))
}

/// Lower case alone, at most 32 digits.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((value << 4) | u128::from(digit))
    })
}

/// Unique and evenly spread, not secret: the process's random seed and a counter, mixed. Asking the system for each would
/// cost more than all the rest.
fn random_id() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let seed = *SEED.get_or_init(|| {
        let mut bytes = [0; 8];
        crate::auth::fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    });
    // splitmix64
    let step = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut value = seed.wrapping_add(step);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (value ^ (value >> 31)).max(1)
}

/// Whether a trace that begins here is exported.
#[cfg(feature = "otlp")]
fn is_sampled(trace: TraceId) -> bool {
    super::otlp::is_sampled(trace.0 as u64)
}

/// Without an exporter nobody is told to record.
#[cfg(not(feature = "otlp"))]
fn is_sampled(_trace: TraceId) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(values: &[String]) -> TraceContext {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, value.parse().unwrap());
        }
        TraceContext::of_headers(&headers)
    }

    #[test]
    fn a_valid_parent_is_carried_on_with_its_flag() {
        for (flags, sampled) in [("01", true), ("00", false), ("03", true), ("02", false)] {
            let context = read(&[format!("00-{TRACE}-{SPAN}-{flags}")]);
            assert_eq!((context.trace.to_string().as_str(), context.sampled), (TRACE, sampled));
            assert_eq!(context.parent.map(|p| p.to_string()).as_deref(), Some(SPAN));
            let sent = format!("00-{TRACE}-{}-{:02x}", context.span, u8::from(sampled));
            assert_eq!(context.traceparent(), sent);
        }
        assert_eq!(read(&[format!("42-{TRACE}-{SPAN}-01-more")]).trace.to_string(), TRACE, "a later version");
    }

    #[test]
    fn anything_else_begins_a_trace() {
        let zeros = ("0".repeat(32), "0".repeat(16));
        let bad = [
            String::new(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", zeros.0),
            format!("00-{TRACE}-{}-01", zeros.1),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("42-{TRACE}-{SPAN}-01more"),
            format!(" 00-{TRACE}-{SPAN}-01"),
        ];
        for bad in bad {
            let context = read(std::slice::from_ref(&bad));
            assert!(context.parent.is_none() && context.trace.to_string() != TRACE, "{bad:?}");
        }
        let twice = format!("00-{TRACE}-{SPAN}-01");
        assert!(read(&[twice.clone(), twice]).parent.is_none(), "two of them");
    }

    #[test]
    fn what_this_server_sends_it_reads() {
        let root = TraceContext::root();
        let next = read(&[root.traceparent()]);
        assert_eq!((next.trace, next.parent, next.sampled), (root.trace, Some(root.span), root.sampled));
    }
}
