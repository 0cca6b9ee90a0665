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

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{time:.3}")
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(d)?;
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
    fn durations_are_seconds_and_never_negative() {
        assert_eq!(serde_json::to_string(&Seconds::new(90)).unwrap(), "90");
        assert_eq!(serde_json::to_string(&Seconds::from_ms(250)).unwrap(), "0.25");
        assert_eq!(serde_json::from_str::<Seconds>("0.25").unwrap(), Seconds::from_ms(250));
        assert!(serde_json::from_str::<Seconds>("-1").is_err());
        assert!(serde_json::from_str::<Seconds>("1e300").is_err());
    }
}
