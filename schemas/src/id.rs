//! Ids: of works, of a node's instances, of requests. All are UUIDs, always written as text.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                // Subjects are case sensitive: one spelling only.
                let id = Uuid::parse_str(text)?;
                let mut buffer = Uuid::encode_buffer();
                if id.as_hyphenated().encode_lower(&mut buffer) == text {
                    Ok(Self(id))
                } else {
                    Uuid::parse_str("").map(Self)
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.0.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(d)?;
                text.parse().map_err(|_| {
                    serde::de::Error::custom(format_args!(
                        "`{}` is not a lower-case hyphenated UUID",
                        text.chars().take(80).collect::<String>()
                    ))
                })
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": "uuid" })
            }
        }
    };
}

id!(
    /// A work. A UUIDv7, so that ids sort by the time at which they were made.
    WorkId
);
id!(
    /// One life of a node's keeper, made when it starts.
    InstanceId
);
id!(
    /// One request to change something, so that the same request said twice is done once.
    RequestId
);

impl WorkId {
    /// The time inside a UUIDv7, in milliseconds since 1970; `None` for any other UUID.
    pub fn made_at_ms(&self) -> Option<u64> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        (self.0.get_version_num() == 7).then_some(seconds * 1000 + u64::from(nanos) / 1_000_000)
    }
}

/// Which attempt at an index of a task: counts from 1, only grows, is never given twice.
pub type Attempt = u32;

/// Which scheduler assigned: a number that only grows, stored in the journal.
pub type Epoch = u64;

/// A place in the journal: the bus's sequence number.
pub type Seq = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let text = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";
        assert_eq!(text.parse::<WorkId>().unwrap().to_string(), text);
        assert!(text.to_uppercase().parse::<WorkId>().is_err());
        assert!(text.replace('-', "").parse::<WorkId>().is_err());
        assert!(format!("{{{text}}}").parse::<WorkId>().is_err());
    }

    #[test]
    fn the_time_is_read_from_version_7_only() {
        let v7: WorkId = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f".parse().unwrap();
        assert_eq!(v7.made_at_ms(), Some(0x0198_f0c2_7b5e));
        assert_eq!(WorkId(Uuid::from_u128(1)).made_at_ms(), None);
    }
}
