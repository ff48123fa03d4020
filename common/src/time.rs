//! Time as an argument: servers take a [`Clock`], so tests can hold it still.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to `self`, zero if the clock went back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Days since 1970-01-01 and the millisecond of that day, for calendar arithmetic.
    fn split(self) -> (i64, u64) {
        ((self.0 / 86_400_000) as i64, self.0 % 86_400_000)
    }

    /// Year, month and day in UTC. (Algorithm: Howard Hinnant, "chrono-compatible low-level date algorithms".)
    pub fn civil(self) -> (i64, u32, u32) {
        let z = self.split().0 + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
        let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
        (yoe + era * 400 + i64::from(month <= 2), month, day)
    }

    /// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
    pub fn http_date(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let (days, ms) = self.split();
        let (year, month, day) = self.civil();
        let s = ms / 1000;
        let weekday = DAYS[(days % 7) as usize];
        let month = MONTHS[(month - 1) as usize];
        format!("{weekday}, {day:02} {month} {year} {:02}:{:02}:{:02} GMT", s / 3600, s / 60 % 60, s % 60)
    }

    /// Reads the preferred form that [`Self::http_date`] writes.
    pub fn parse_http_date(text: &str) -> Option<Self> {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let mut parts = text.strip_suffix(" GMT")?.split_once(", ")?.1.split(' ');
        let day: i64 = parts.next()?.parse().ok()?;
        let month_name = parts.next()?;
        let month = MONTHS.iter().position(|m| *m == month_name)? as i64 + 1;
        let year: i64 = parts.next()?.parse().ok()?;
        let mut clock = parts.next()?.splitn(3, ':').map(|p| p.parse::<i64>().ok());
        let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
        if !(1..=31).contains(&day) || !(0..24).contains(&h) || !(0..60).contains(&m) || !(0..61).contains(&s)
        {
            return None;
        }
        let seconds = days_from_civil(year, month, day) * 86_400 + h * 3600 + m * 60 + s;
        u64::try_from(seconds).ok().map(|s| Self(s * 1000))
    }
}

/// Days from 1970-01-01 to a civil date (same source as [`UnixMillis::civil`]).
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// RFC 3339 in UTC with milliseconds.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        let ms = self.split().1;
        let s = ms / 1000;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            s / 3600,
            s / 60 % 60,
            s % 60,
            ms % 1000
        )
    }
}

/// Where a server reads the time.
#[derive(Clone)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// Milliseconds that a test sets by hand.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn now(&self) -> UnixMillis {
        match self {
            Self::System => {
                let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Manual(ms) => UnixMillis(ms.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_their_standards() {
        let t = UnixMillis(784_111_777_000);
        assert_eq!(t.http_date(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(UnixMillis::parse_http_date(&t.http_date()), Some(t));
        assert_eq!(UnixMillis(951_782_400_001).to_string(), "2000-02-29T00:00:00.001Z");
        assert_eq!(UnixMillis::parse_http_date("yesterday"), None);
    }
}
