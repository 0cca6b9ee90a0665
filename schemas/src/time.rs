//! Times and durations as they are said: stamps in RFC 3339 with milliseconds, durations in seconds.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    borrow::Cow,
    fmt,
    ops::{Add, Sub},
};

/// A point on a clock that only grows, in milliseconds; it means something within one process only.
/// Cores are given it, they never look at a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// How long ago `earlier` was; zero if it is not earlier.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Millis {
    type Output = Millis;
    fn add(self, millis: u64) -> Millis {
        Millis(self.0.saturating_add(millis))
    }
}

impl Sub<u64> for Millis {
    type Output = Millis;
    fn sub(self, millis: u64) -> Millis {
        Millis(self.0.saturating_sub(millis))
    }
}

/// A moment in the world, in milliseconds since 1970. Written as `2026-11-23T03:42:03.123Z`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The moment `millis` earlier.
    pub fn minus_ms(self, millis: u64) -> Stamp {
        Stamp(self.0.saturating_sub(millis))
    }

    /// The moment `millis` later.
    pub fn plus_ms(self, millis: u64) -> Stamp {
        Stamp(self.0.saturating_add(millis))
    }
}

/// Length of a stamp as we write it.
const WRITTEN: usize = "2026-11-23T03:42:03.123Z".len();
/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 3600 * 1000;
/// From 0000-03-01, where the count of days is easy, to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;
/// The first moment that needs more than four digits for its year: 10000-01-01.
const YEAR_10000: u64 = 253_402_300_800_000;

impl Stamp {
    /// As it is written. Every fact has several: this is a tenth of what a general formatter needs.
    fn written(self) -> [u8; WRITTEN] {
        let ms = self.0.min(YEAR_10000 - 1);
        let days = ms / DAY_MS + DAYS_TO_1970;
        // The civil calendar in eras of 400 years that begin on the first of March
        // (Hinnant, "chrono-compatible low-level date algorithms").
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = 400 * era + year + u64::from(month <= 2);
        let second = ms / 1000 % 86_400;
        let mut out = *b"0000-00-00T00:00:00.000Z";
        let mut put = |at: usize, digits: usize, mut number: u64| {
            for place in out[at..at + digits].iter_mut().rev() {
                *place = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(0, 4, year);
        put(5, 2, month);
        put(8, 2, day);
        put(11, 2, second / 3600);
        put(14, 2, second / 60 % 60);
        put(17, 2, second % 60);
        put(20, 3, ms % 1000);
        out
    }

    /// Reads what [`Stamp::written`] writes; `None` for any other form of a time.
    fn read(text: &str) -> Option<Stamp> {
        let bytes: &[u8; WRITTEN] = text.as_bytes().try_into().ok()?;
        let marks =
            [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
        if marks.iter().any(|&(at, mark)| bytes[at] != mark) {
            return None;
        }
        let number = |at: usize, digits: usize| {
            bytes[at..at + digits].iter().try_fold(0, |number: u64, &byte| {
                byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
            })
        };
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        let years = year.checked_sub(u64::from(month <= 2))?;
        let months = if month > 2 { month.checked_sub(3)? } else { month + 9 };
        let (era, year) = (years / 400, years % 400);
        let day = (153 * months + 2) / 5 + day.checked_sub(1)?;
        let days = era * 146_097 + 365 * year + year / 4 - year / 100 + day;
        let seconds = hour * 3600 + minute * 60 + second;
        let stamp =
            Stamp(days.checked_sub(DAYS_TO_1970)? * DAY_MS + seconds * 1000 + number(20, 3)?);
        // What is no moment (a 13th month, a 30th of February) is not written like that.
        (stamp.written() == *bytes).then_some(stamp)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.written()).expect("digits and marks are ASCII"))
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(std::str::from_utf8(&self.written()).expect("digits and marks are ASCII"))
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(d)?;
        if let Some(stamp) = Stamp::read(&text) {
            return Ok(stamp);
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| {
            serde::de::Error::custom("not a time in RFC 3339, such as 2026-11-23T03:42:03.123Z")
        })?;
        Ok(Stamp(time.as_millisecond().try_into().unwrap_or(0)))
    }
}

impl JsonSchema for Stamp {
    fn schema_name() -> Cow<'static, str> {
        "Stamp".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// The time that is handed to a core with every event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// On the process's own clock, which only grows and counts suspend: for waiting and silence.
    pub at: Millis,
    /// On the world's clock: for what people read, and for ages of what the bus has stamped.
    pub wall: Stamp,
}

/// A duration, kept in milliseconds, written as a number of seconds (`90`, `0.25`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds {
    /// The same in milliseconds.
    pub ms: u64,
}

impl Seconds {
    /// Longest duration that may be said: 100 years.
    pub const MAX: Seconds = Seconds { ms: 100 * 365 * 24 * 3600 * 1000 };

    /// So many whole seconds.
    pub const fn new(seconds: u64) -> Self {
        Self { ms: seconds * 1000 }
    }

    /// So many milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// Whether it is zero (which is left out when written).
    pub fn is_zero(&self) -> bool {
        self.ms == 0
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.ms as f64 / 1000.0)
    }
}

impl fmt::Debug for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.ms.is_multiple_of(1000) {
            s.serialize_u64(self.ms / 1000)
        } else {
            s.serialize_f64(self.ms as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(d)?;
        if !(0.0..=Seconds::MAX.ms as f64 / 1000.0).contains(&seconds) {
            return Err(serde::de::Error::custom(format_args!(
                "{seconds} is not a duration in seconds (0 to 100 years)"
            )));
        }
        Ok(Self { ms: (seconds * 1000.0).round() as u64 })
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_written_with_milliseconds() {
        let stamp = Stamp(1_795_405_323_120);
        let text = serde_json::to_string(&stamp).unwrap();
        assert_eq!(text.len(), "\"2026-11-23T03:42:03.120Z\"".len());
        assert!(text.ends_with(".120Z\""), "{text}");
        assert_eq!(serde_json::from_str::<Stamp>(&text).unwrap(), stamp);
    }

    #[test]
    fn stamps_are_what_the_library_would_write_and_read() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        for n in 0..20_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let stamp = match n {
                0 => Stamp(0),
                1 => Stamp(951_782_400_000),
                // The last that the library has.
                2 => Stamp(253_402_207_200_000),
                _ => Stamp((seed >> 8) % 253_402_207_200_000),
            };
            let time = jiff::Timestamp::from_millisecond(stamp.0 as i64).unwrap();
            let text = format!("{time:.3}");
            assert_eq!(stamp.to_string(), text);
            assert_eq!(Stamp::read(&text), Some(stamp));
        }
        for other in [
            "2026-02-30T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-11-23T24:00:00.000Z",
            "2026-11-23T03:42:03Z",
            "2026-11-23 03:42:03.123Z",
            "1969-12-31T23:59:59.999Z",
            "+026-11-23T03:42:03.123Z",
        ] {
            assert_eq!(Stamp::read(other), None, "{other}");
        }
        let zone: Stamp = serde_json::from_str("\"2026-11-23T04:42:03.123+01:00\"").unwrap();
        assert_eq!(zone.to_string(), "2026-11-23T03:42:03.123Z");
    }

    #[test]
    fn durations_are_seconds_and_never_negative() {
        assert_eq!(serde_json::to_string(&Seconds::new(90)).unwrap(), "90");
        assert_eq!(serde_json::to_string(&Seconds::from_ms(250)).unwrap(), "0.25");
        assert_eq!(serde_json::from_str::<Seconds>("0.25").unwrap(), Seconds::from_ms(250));
        assert!(serde_json::from_str::<Seconds>("-1").is_err());
        assert!(serde_json::from_str::<Seconds>("1e300").is_err());
    }
}
