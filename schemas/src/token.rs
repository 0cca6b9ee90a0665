//! Names that may stand in a subject: `[a-z0-9][a-z0-9_-]{0,35}`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

/// Longest name, in bytes.
pub const MAX_LEN: usize = 36;

/// The rule as a regular expression, for schemas and messages.
pub const PATTERN: &str = "^[a-z0-9][a-z0-9_-]{0,35}$";

/// Says whether `text` may stand as one token of a subject.
pub fn is_token(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some(first) = bytes.first() else { return false };
    bytes.len() <= MAX_LEN
        && (first.is_ascii_lowercase() || first.is_ascii_digit())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

/// Makes the nearest token out of any text (a host name, say); `None` when nothing of it is left.
pub fn tokenize(text: &str) -> Option<String> {
    let mut out: String = text
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_' | '-') => c,
            _ => '-',
        })
        .collect();
    out = out.trim_matches(['-', '_']).to_owned();
    out.truncate(MAX_LEN);
    is_token(&out).then_some(out)
}

/// The text is not a name that may stand in a subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name: lower-case letters, digits, `-` and `_`, at most 36, beginning with a letter or digit"
)]
pub struct NotAToken(pub String);

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the rule and takes the name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NotAToken> {
                let text = text.as_ref();
                if is_token(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NotAToken(text.chars().take(80).collect()))
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotAToken;
            fn from_str(text: &str) -> Result<Self, NotAToken> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(d)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": PATTERN })
            }
        }
    };
}

token!(
    /// A machine, as its worker presents it.
    NodeName
);
token!(
    /// A LAN: the machines of one site reach each other without the bus.
    SiteName
);
token!(
    /// The set of nodes that one scheduler rules.
    PoolName
);
token!(
    /// Whose a work is.
    OwnerName
);
token!(
    /// The identity that speaks.
    CallerName
);
token!(
    /// One vertex of a work.
    TaskName
);
token!(
    /// A named stream of output: `stdout`, `stderr`, `metrics` …
    StreamName
);

impl PoolName {
    /// The pool of works that name none: `main`.
    pub fn main() -> Self {
        Self("main".into())
    }
}

impl TaskName {
    /// The only task of a work written in the short form: `main`.
    pub fn main() -> Self {
        Self("main".into())
    }
}

impl OwnerName {
    /// In a house with one person, everything is `owner`'s.
    pub fn owner() -> Self {
        Self("owner".into())
    }

    /// As which owner a caller acts when he names none: himself.
    pub fn of(caller: &CallerName) -> Self {
        Self(caller.0.clone())
    }
}

impl CallerName {
    /// The caller of subjects that name none: `owner`.
    pub fn owner() -> Self {
        Self("owner".into())
    }
}

impl StreamName {
    /// What a process writes to its descriptor 1.
    pub fn stdout() -> Self {
        Self("stdout".into())
    }

    /// What a process writes to its descriptor 2.
    pub fn stderr() -> Self {
        Self("stderr".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_dots_capitals_and_long_names_are_no_tokens() {
        for bad in ["", "*", ">", "a.b", "A", "-a", "_a", "ä", "a b", &"a".repeat(37), "a\0"] {
            assert!(NodeName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0", "m4", "my-node_2", &"a".repeat(36)] {
            assert!(NodeName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_host_name_becomes_a_token_or_nothing() {
        assert_eq!(tokenize("Lab PC (2)").as_deref(), Some("lab-pc--2"));
        assert_eq!(tokenize("…"), None);
    }
}
