//! Shows bytes of which nothing is known but the encoding.

use crate::{
    blob::Blob,
    codec::{Encoding, MAX_DEPTH},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use std::fmt;

/// The bytes as JSON; what cannot be read comes as a string or as `{"base64": "…"}`.
pub(super) fn show(encoding: Encoding, bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    let read = match encoding {
        Encoding::Json => serde_json::from_slice(bytes).ok(),
        Encoding::MsgPack => {
            let mut d = rmp_serde::Deserializer::from_read_ref(bytes);
            d.set_max_depth(MAX_DEPTH);
            let value = Loose::deserialize(&mut d).ok();
            value.filter(|_| crate::codec::is_at_end(&mut d)).map(|loose| loose.0)
        }
    };
    read.unwrap_or_else(|| blob(bytes))
}

fn blob(bytes: &[u8]) -> Value {
    serde_json::to_value(Blob::from(bytes.to_vec())).expect("a blob is a string or an object")
}

/// Anything that MessagePack can say. (`serde_json::Value` itself refuses bytes and keys that are
/// no strings.)
struct Loose(Value);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<Loose, E> {
        Ok(Loose(is.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Loose, E> {
        Ok(Loose(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Loose, E> {
        Ok(Loose(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Loose, E> {
        // JSON has no word for these.
        let plain = Number::from_f64(number).map(Value::Number);
        Ok(Loose(plain.unwrap_or_else(|| number.to_string().into())))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Loose, E> {
        Ok(Loose(text.into()))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Loose, E> {
        Ok(Loose(blob(bytes)))
    }

    fn visit_unit<E: Error>(self) -> Result<Loose, E> {
        Ok(Loose(Value::Null))
    }

    fn visit_none<E: Error>(self) -> Result<Loose, E> {
        Ok(Loose(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Loose, D::Error> {
        Loose::deserialize(d)
    }

    /// An extension type: its number and its bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Loose, D::Error> {
        let (ext, bytes) = <(i8, Loose)>::deserialize(d)?;
        Ok(Loose(serde_json::json!({ "ext": ext, "bytes": bytes.0 })))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Loose>()? {
            items.push(item.0);
        }
        Ok(Loose(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
        let mut fields = Map::new();
        while let Some((key, value)) = map.next_entry::<Loose, Loose>()? {
            let key = match key.0 {
                Value::String(text) => text,
                // As text each level would double the quotes of the one within.
                Value::Array(_) | Value::Object(_) => {
                    return Err(A::Error::custom("a key that is a list or a map"));
                }
                plain => plain.to_string(),
            };
            fields.insert(key, value.0);
        }
        Ok(Loose(fields.into()))
    }
}
