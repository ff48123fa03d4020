//! Months and time zones: which month a delivery belongs to, and when a version of a tariff begins.

use std::fmt;
use std::str::FromStr;

use common::time::{UnixMillis, days_from_civil};
use serde::{Deserialize, Serialize};

const DAY_MS: i64 = 86_400_000;
/// The last millisecond of the year 9999; later times (a broken clock) count as this one.
const LAST_MS: u64 = 253_402_300_799_999;

/// A text that is not a period, a zone or a local time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not valid: {rule}")]
pub struct InvalidTime {
    what: &'static str,
    given: String,
    rule: &'static str,
}

impl InvalidTime {
    fn new(what: &'static str, given: &str, rule: &'static str) -> Self {
        Self { what, given: given.chars().take(40).collect(), rule }
    }
}

/// Offset of a tariff's zone from UTC. Zones with summer time are not known: give the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    offset_ms: i64,
}

impl Zone {
    /// Asia/Tokyo, +09:00 all year.
    pub const TOKYO: Self = Self { offset_ms: 9 * 3_600_000 };

    fn local(self, time: UnixMillis) -> UnixMillis {
        UnixMillis(time.0.min(LAST_MS).saturating_add_signed(self.offset_ms).min(LAST_MS))
    }

    /// The date of `time` in this zone, so many days later, as `YYYY-MM-DD`.
    pub fn date(self, time: UnixMillis, days_later: u32) -> String {
        let later = UnixMillis(time.0.saturating_add(u64::from(days_later) * DAY_MS.unsigned_abs()));
        let (year, month, day) = self.local(later).civil();
        format!("{year:04}-{month:02}-{day:02}")
    }

    fn instant(self, days: i64, ms_of_day: i64) -> UnixMillis {
        UnixMillis(u64::try_from(days * DAY_MS + ms_of_day - self.offset_ms).unwrap_or(0))
    }

    /// Reads `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM[:SS]` as a time in this zone. Times before 1970 become 1970.
    pub fn parse_local(self, text: &str) -> Result<UnixMillis, InvalidTime> {
        let invalid = || InvalidTime::new("time", text, "YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS, in the zone");
        let (date, clock) = text.split_once('T').unwrap_or((text, "00:00:00"));
        let date = numbers(date, '-').filter(|n| n.len() == 3).ok_or_else(invalid)?;
        let mut clock = numbers(clock, ':').filter(|n| (2..=3).contains(&n.len())).ok_or_else(invalid)?;
        clock.resize(3, 0);
        let (year, month, day) = (date[0], date[1], date[2]);
        let (hour, minute, second) = (clock[0], clock[1], clock[2]);
        let days = days_from_civil(year, month, day);
        let next_month = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        let valid = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && day >= 1
            && days < days_from_civil(next_month.0, next_month.1, 1)
            && (hour < 24 && minute < 60 && second < 60);
        if !valid {
            return Err(invalid());
        }
        Ok(self.instant(days, (hour * 3600 + minute * 60 + second) * 1000))
    }
}

/// Digits between separators; `None` if anything else is there.
fn numbers(text: &str, separator: char) -> Option<Vec<i64>> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.len() <= 4 && part.bytes().all(|b| b.is_ascii_digit());
        if digits { part.parse().ok() } else { None }
    };
    text.split(separator).map(number).collect()
}

impl FromStr for Zone {
    type Err = InvalidTime;
    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let invalid = || InvalidTime::new("zone", text, "UTC, Asia/Tokyo or an offset as in +09:00");
        match text {
            "UTC" | "Z" => return Ok(Self { offset_ms: 0 }),
            "Asia/Tokyo" => return Ok(Self::TOKYO),
            _ => {}
        }
        let sign = match text.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(invalid()),
        };
        let parts = numbers(&text[1..], ':').filter(|n| n.len() == 2).ok_or_else(invalid)?;
        if parts[0] > 14 || parts[1] > 59 {
            return Err(invalid());
        }
        Ok(Self { offset_ms: sign * (parts[0] * 60 + parts[1]) * 60_000 })
    }
}

/// A month, shown as `YYYY-MM`, stored as the number YYYYMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, example = "2026-10")]
pub struct Period(u32);

impl Period {
    /// The month of `time` in `zone`.
    pub fn of(time: UnixMillis, zone: Zone) -> Self {
        let (year, month, _) = zone.local(time).civil();
        Self(year as u32 * 100 + month) // LAST_MS keeps the year within four digits
    }

    pub fn next(self) -> Self {
        if self.0 % 100 == 12 { Self(self.0 + 89) } else { Self(self.0 + 1) }
    }

    /// The first and the last day, as `YYYY-MM-DD`.
    pub fn days(self) -> (String, String) {
        let next = self.next();
        let first = |period: Self| days_from_civil(i64::from(period.0 / 100), i64::from(period.0 % 100), 1);
        (format!("{self}-01"), format!("{self}-{:02}", first(next) - first(self)))
    }

    /// The first instant after the month.
    pub fn end(self, zone: Zone) -> UnixMillis {
        let next = self.next();
        zone.instant(days_from_civil(i64::from(next.0 / 100), i64::from(next.0 % 100), 1), 0)
    }

    /// As in the database, YYYYMM.
    pub fn number(self) -> i64 {
        i64::from(self.0)
    }

    pub(crate) fn from_number(number: i64) -> Option<Self> {
        let number = u32::try_from(number).ok()?;
        let valid = (1..=12).contains(&(number % 100)) && number <= 999_912;
        valid.then_some(Self(number))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 100, self.0 % 100)
    }
}

impl FromStr for Period {
    type Err = InvalidTime;
    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let invalid = || InvalidTime::new("period", text, "a month as YYYY-MM");
        let parts = numbers(text, '-').filter(|n| n.len() == 2 && text.len() == 7).ok_or_else(invalid)?;
        Self::from_number(parts[0] * 100 + parts[1]).ok_or_else(invalid)
    }
}

impl TryFrom<String> for Period {
    type Error = InvalidTime;
    fn try_from(text: String) -> Result<Self, InvalidTime> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> String {
        period.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_at_midnight_of_its_zone() {
        let begin = Zone::TOKYO.parse_local("2026-12-01").unwrap();
        assert_eq!(begin.to_string(), "2026-11-30T15:00:00.000Z");
        let before = UnixMillis(begin.0 - 1);
        assert_eq!(Period::of(before, Zone::TOKYO).to_string(), "2026-11");
        assert_eq!(Period::of(begin, Zone::TOKYO).to_string(), "2026-12");
        assert_eq!(Period::of(begin, "UTC".parse().unwrap()).to_string(), "2026-11");
        let november: Period = "2026-11".parse().unwrap();
        assert_eq!(november.end(Zone::TOKYO), begin);
        assert_eq!(november.next().next().to_string(), "2027-01");
        assert_eq!(Period::of(UnixMillis(u64::MAX), Zone::TOKYO).to_string(), "9999-12");
    }

    #[test]
    fn texts_that_are_no_times_are_refused() {
        for bad in ["2026-13", "2026-00", "26-01", "2026-1", "2026-+1", "x", ""] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
        for bad in ["2026-02-30", "2026-2", "2026-01-01T24:00", "yesterday", "2026-01-01T"] {
            assert!(Zone::TOKYO.parse_local(bad).is_err(), "{bad}");
        }
        assert!(Zone::TOKYO.parse_local("2028-02-29T23:59:59").is_ok());
        for bad in ["Europe/Paris", "+9", "+99:00", ""] {
            assert!(bad.parse::<Zone>().is_err(), "{bad}");
        }
        assert_eq!("+09:00".parse::<Zone>().unwrap(), Zone::TOKYO);
    }
}
