//! Bytes as they are said: `bin` in MessagePack; in JSON a string where they are valid UTF-8, else
//! `{"base64": "…"}`.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap,
};
use std::{borrow::Cow, fmt};

/// Any bytes: what a job wrote, what it is given to read.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

impl Blob {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes as text, with replacement characters where they are no UTF-8.
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl<T: Into<Bytes>> From<T> for Blob {
    fn from(bytes: T) -> Self {
        Blob(bytes.into())
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = &self.0[..self.0.len().min(64)];
        write!(f, "{:?} ({} bytes)", String::from_utf8_lossy(head), self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if !s.is_human_readable() {
            return s.serialize_bytes(&self.0);
        }
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("base64", &STANDARD.encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or {\"base64\": \"…\"}")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(text.as_bytes())))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Blob, E> {
                Ok(Blob(text.into()))
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }

            // Some MessagePack writers know no `bin` and say an array of numbers.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Blob, A::Error> {
                let mut bytes = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(4096));
                while let Some(byte) = seq.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(Blob(bytes.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Blob, A::Error> {
                let Some(key) = map.next_key::<Cow<str>>()? else {
                    return Err(A::Error::missing_field("base64"));
                };
                if key != "base64" {
                    return Err(A::Error::unknown_field(&key, &["base64"]));
                }
                let text: Cow<str> = map.next_value()?;
                if map.next_key::<Cow<str>>()?.is_some() {
                    return Err(A::Error::custom("one key only: `base64`"));
                }
                let bytes = STANDARD.decode(text.as_bytes()).map_err(A::Error::custom)?;
                Ok(Blob(bytes.into()))
            }
        }

        d.deserialize_any(Any)
    }
}

impl JsonSchema for Blob {
    fn schema_name() -> Cow<'static, str> {
        "Blob".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "bytes: a string where they are valid UTF-8, else an object with base64",
            "oneOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "base64": { "type": "string", "contentEncoding": "base64" } },
                    "required": ["base64"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back_the_same_in_both_encodings() {
        for bytes in [&b""[..], b"plain", "ä€\u{1F600}".as_bytes(), b"\xff\x00\xfe", b"a\0b"] {
            let blob = Blob(Bytes::copy_from_slice(bytes));
            let json = serde_json::to_vec(&blob).unwrap();
            assert_eq!(serde_json::from_slice::<Blob>(&json).unwrap(), blob);
            let pack = rmp_serde::to_vec_named(&blob).unwrap();
            assert_eq!(rmp_serde::from_slice::<Blob>(&pack).unwrap(), blob);
        }
        assert_eq!(serde_json::to_string(&Blob::from("hi")).unwrap(), "\"hi\"");
        assert_eq!(
            serde_json::to_string(&Blob::from(vec![0xff_u8])).unwrap(),
            "{\"base64\":\"/w==\"}"
        );
    }

    #[test]
    fn what_is_no_blob_is_refused() {
        for bad in ["1", "{}", "{\"base64\":\"*\"}", "{\"hex\":\"00\"}", "[300]", "null"] {
            assert!(serde_json::from_str::<Blob>(bad).is_err(), "{bad}");
        }
    }
}
