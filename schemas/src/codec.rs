//! As which bytes a message is said: JSON, or MessagePack with named fields.
//!
//! What people write is decoded strictly ([`decode_strict`]): an unknown field is refused with the
//! nearest known name. What parts say to each other is decoded leniently ([`decode`]).

use crate::{
    error::{Refusal, code},
    work::check::nearest,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The only spelling of the header's value that means MessagePack.
pub const MSGPACK: &str = "application/msgpack";

/// Deepest nesting that is read.
pub(crate) const MAX_DEPTH: usize = 64;

/// JSON or MessagePack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// No `Content-Type`, or any that is not MessagePack's.
    #[default]
    Json,
    /// `Content-Type: application/msgpack`.
    MsgPack,
}

impl Encoding {
    /// Reads the value of a `Content-Type` or `Accept` header.
    pub fn of(header: Option<&str>) -> Self {
        match header {
            Some(MSGPACK) => Encoding::MsgPack,
            _ => Encoding::Json,
        }
    }

    /// The value of the header, where one is sent.
    pub fn header(self) -> Option<&'static str> {
        match self {
            Encoding::Json => None,
            Encoding::MsgPack => Some(MSGPACK),
        }
    }

    /// Its name, for sentences.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Json => "JSON",
            Encoding::MsgPack => "MessagePack",
        }
    }
}

/// Writes a message.
pub fn encode<T: Serialize>(encoding: Encoding, message: &T) -> Vec<u8> {
    match encoding {
        Encoding::Json => serde_json::to_vec(message).expect("messages have string keys only"),
        Encoding::MsgPack => {
            rmp_serde::to_vec_named(message).expect("messages hold nothing MessagePack lacks")
        }
    }
}

/// Reads a message and passes over fields that are not known. Between parts of the house: what is
/// wrong is said without its path, which would cost time on every message that is right.
pub fn decode<T: DeserializeOwned>(encoding: Encoding, bytes: &[u8]) -> Result<T, Refusal> {
    let read = match encoding {
        Encoding::Json => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
        Encoding::MsgPack => {
            let mut d = rmp_serde::Deserializer::from_read_ref(bytes);
            d.set_max_depth(MAX_DEPTH);
            T::deserialize(&mut d)
                .map_err(|error| error.to_string())
                .and_then(|message| whole(message, &mut d))
        }
    };
    read.map_err(|error| malformed(encoding, "", &error))
}

/// Reads what a person wrote: a field that is not known is refused, with the nearest known name.
/// An empty payload is read as `{}`.
pub fn decode_strict<T: DeserializeOwned + JsonSchema>(
    encoding: Encoding,
    bytes: &[u8],
) -> Result<T, Refusal> {
    let mut unknown: Option<String> = None;
    let bytes: &[u8] = match (bytes, encoding) {
        (b"", Encoding::Json) => b"{}",
        (b"", Encoding::MsgPack) => b"\x80",
        _ => bytes,
    };
    let message = read(encoding, bytes, &mut unknown);
    // A misspelt name is also the likeliest reason why the rest made no sense.
    match unknown {
        None => message,
        Some(path) => Err(unknown_field::<T>(&path)),
    }
}

/// What `serde_ignored` calls. One type for all messages: it is part of the type of every reader
/// that is made for a message and for each of its fields, and each of these is compiled.
type Note<'a> = &'a mut dyn FnMut(serde_ignored::Path<'_>);

fn read<T: DeserializeOwned>(
    encoding: Encoding,
    bytes: &[u8],
    first_unknown: &mut Option<String>,
) -> Result<T, Refusal> {
    let mut track = serde_path_to_error::Track::new();
    let note: Note<'_> = &mut |path: serde_ignored::Path<'_>| {
        if first_unknown.is_none() {
            *first_unknown = Some(plain_path(&path.to_string()));
        }
    };
    let result = match encoding {
        Encoding::Json => {
            let mut d = serde_json::Deserializer::from_slice(bytes);
            let tracked = serde_path_to_error::Deserializer::new(&mut d, &mut track);
            serde_ignored::deserialize(tracked, note)
                .and_then(|message| d.end().map(|()| message))
                .map_err(|error| error.to_string())
        }
        Encoding::MsgPack => {
            let mut d = rmp_serde::Deserializer::from_read_ref(bytes);
            d.set_max_depth(MAX_DEPTH);
            let tracked = serde_path_to_error::Deserializer::new(&mut d, &mut track);
            serde_ignored::deserialize(tracked, note)
                .map_err(|error| error.to_string())
                .and_then(|message| whole(message, &mut d))
        }
    };
    result.map_err(|error| malformed(encoding, &plain_path(&track.path().to_string()), &error))
}

fn whole<'de, T, R: rmp_serde::decode::ReadSlice<'de>>(
    message: T,
    d: &mut rmp_serde::Deserializer<R>,
) -> Result<T, String> {
    if is_at_end(d) { Ok(message) } else { Err("trailing bytes".to_owned()) }
}

/// Whether nothing follows what was read.
pub(crate) fn is_at_end<'de, R: rmp_serde::decode::ReadSlice<'de>>(
    d: &mut rmp_serde::Deserializer<R>,
) -> bool {
    use rmp_serde::decode::Error::InvalidMarkerRead;
    matches!(serde::de::IgnoredAny::deserialize(d), Err(InvalidMarkerRead(_)))
}

/// `tasks.0.run` is said as `tasks[0].run`; the marks of options and enums are left out.
fn plain_path(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('.') {
        if part.is_empty() || part == "?" {
            continue;
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            if !out.is_empty() && !part.starts_with('[') {
                out.push('.');
            }
            out.push_str(part);
        }
    }
    out
}

fn malformed(encoding: Encoding, path: &str, error: &str) -> Refusal {
    let shown: String = error.chars().take(300).collect();
    let at = if path.is_empty() { String::new() } else { format!("`{path}`: ") };
    let mut refusal =
        Refusal::new(code::MALFORMED, format!("{at}{shown} (read as {})", encoding.name()));
    if !path.is_empty() {
        refusal = refusal.field(path);
    }
    // serde names the variants that there are; the nearest is the likely one.
    if let Some((written, known)) = named_alternatives(error) {
        if let Some(near) = nearest(&written, known.iter().map(String::as_str)) {
            return refusal.hint(format!("did you mean `{near}`?"));
        }
        return refusal;
    }
    if encoding == Encoding::Json && path.is_empty() {
        return refusal.hint("without a header the payload must be one JSON object");
    }
    refusal
}

/// Takes `unknown variant `x`, expected `a` or `b`` apart.
fn named_alternatives(error: &str) -> Option<(String, Vec<String>)> {
    let (_, rest) = error.split_once("unknown variant `")?;
    let (written, rest) = rest.split_once("`, expected ")?;
    let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((written.to_owned(), known))
}

fn unknown_field<T: JsonSchema>(path: &str) -> Refusal {
    let (parent, field) = match path.rsplit_once('.') {
        Some((parent, field)) => (parent, field),
        None => ("", path),
    };
    let shown: String = field.chars().take(80).collect();
    let known = known_fields(&schema_of::<T>(), parent);
    let at = if parent.is_empty() { String::new() } else { format!(" in `{parent}`") };
    let refusal =
        Refusal::new(code::UNKNOWN_FIELD, format!("there is no field `{shown}`{at}")).field(path);
    match nearest(field, known.iter().map(String::as_str)) {
        Some(near) => refusal.hint(format!("did you mean `{near}`?")),
        None if known.is_empty() => refusal,
        None => refusal.hint(format!("there are: {}", known.join(", "))),
    }
}

/// The JSON Schema of a type. Made once: whoever sends nonsense by the thousand must not be answered
/// with work by the thousand.
fn schema_of<T: JsonSchema>() -> Arc<Value> {
    static MADE: Mutex<BTreeMap<&str, Arc<Value>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || Arc::new(schemars::schema_for!(T).to_value());
    made.entry(std::any::type_name::<T>()).or_insert_with(make).clone()
}

/// The names of the fields at a path, by the JSON Schema.
fn known_fields(root: &Value, path: &str) -> Vec<String> {
    let mut at = vec![root];
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for schema in at.iter().flat_map(|schema| resolve(root, schema)) {
            if part.ends_with(']') {
                next.extend(schema.get("items"));
            } else {
                let named = schema.get("properties").and_then(|p| p.get(part));
                next.extend(named.or(schema.get("additionalProperties")));
            }
        }
        at = next;
    }
    let mut names: Vec<String> = at
        .iter()
        .flat_map(|schema| resolve(root, schema))
        .filter_map(|schema| schema.get("properties")?.as_object())
        .flat_map(|fields| fields.keys().cloned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Follows references and alternatives down to plain schemas.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let target = name.strip_prefix("#/$defs/").and_then(|name| root.get("$defs")?.get(name));
        return target.map(|schema| resolve(root, schema)).unwrap_or_default();
    }
    let mut out = vec![schema];
    for list in ["anyOf", "oneOf", "allOf"] {
        let members = schema.get(list).and_then(Value::as_array).into_iter().flatten();
        out.extend(members.flat_map(|member| resolve(root, member)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::Submit;

    fn strict(json: &str) -> Refusal {
        decode_strict::<Submit>(Encoding::Json, json.as_bytes()).unwrap_err()
    }

    #[test]
    fn an_unknown_field_gets_the_nearest_name_at_any_depth() {
        for (json, field, near) in [
            (r#"{"argv":["a"],"prority":1}"#, "prority", "priority"),
            (r#"{"argv":["a"],"resources":{"memory":1}}"#, "resources.memory", "memory_mib"),
            (
                r#"{"tasks":[{"name":"a","run":{"process":{"argv":["a"],"evn":{}}}}]}"#,
                "tasks[0].run.process.evn",
                "env",
            ),
            (
                r#"{"tasks":[{"name":"a","run":{"echo":""},"resources":{"cpu":1}}]}"#,
                "tasks[0].resources.cpu",
                "cpus",
            ),
        ] {
            let refusal = strict(json);
            assert_eq!(&*refusal.code, code::UNKNOWN_FIELD, "{refusal:?}");
            assert_eq!(refusal.field.as_deref(), Some(field), "{refusal:?}");
            assert_eq!(refusal.hint, Some(format!("did you mean `{near}`?")), "{refusal:?}");
        }
    }

    #[test]
    fn an_unknown_runner_gets_the_nearest_name_or_all() {
        let refusal = strict(r#"{"run":{"proces":{"argv":["a"]}}}"#);
        assert_eq!(refusal.field.as_deref(), Some("run.proces"), "{refusal:?}");
        assert_eq!(refusal.hint.as_deref(), Some("did you mean `process`?"));
        let refusal = strict(r#"{"run":{}}"#);
        assert!(refusal.message.contains("`process` or `echo`"), "{refusal:?}");
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let refusal = strict(r#"{"argv":["a"],"resources":{"memory_mib":-1}}"#);
        assert_eq!(refusal.field.as_deref(), Some("resources.memory_mib"), "{refusal:?}");
        let refusal = strict(r#"{"tasks":[{"name":"A b","run":{"echo":""}}]}"#);
        assert_eq!(refusal.field.as_deref(), Some("tasks[0].name"), "{refusal:?}");
    }

    #[test]
    fn deep_nesting_and_trailing_text_are_refused() {
        let deep = "[".repeat(900_000);
        assert_eq!(&*strict(&deep).code, code::MALFORMED);
        let deep = format!(r#"{{"tasks":{deep}"#);
        assert_eq!(&*strict(&deep).code, code::MALFORMED);
        let packed = vec![0x91_u8; 900_000];
        assert!(decode_strict::<Submit>(Encoding::MsgPack, &packed).is_err());
        assert_eq!(&*strict("{} {}").code, code::MALFORMED);
    }

    #[test]
    fn both_encodings_say_the_same() {
        let submit: Submit = serde_json::from_str(
            r#"{"argv":["a"],"stdin":{"base64":"/wA="},"array":{"items":["x"]},"timeout_s":1.5,
                "resources":{"cpus":0.5},"where":{"node":["m4"]}}"#,
        )
        .unwrap();
        for encoding in [Encoding::Json, Encoding::MsgPack] {
            let bytes = encode(encoding, &submit);
            assert_eq!(decode_strict::<Submit>(encoding, &bytes).unwrap(), submit);
        }
    }
}
