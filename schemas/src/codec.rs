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
        Encoding::Json => serde_json::from_slice(bytes).map_err(Wrong::from),
        Encoding::MsgPack => {
            let mut d = rmp_serde::Deserializer::from_read_ref(bytes);
            d.set_max_depth(MAX_DEPTH);
            T::deserialize(&mut d).map_err(Wrong::from).and_then(|message| whole(message, &mut d))
        }
    };
    read.map_err(|error| malformed(encoding, "", &error, bytes))
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
                .map_err(Wrong::from)
        }
        Encoding::MsgPack => {
            let mut d = rmp_serde::Deserializer::from_read_ref(bytes);
            d.set_max_depth(MAX_DEPTH);
            let tracked = serde_path_to_error::Deserializer::new(&mut d, &mut track);
            serde_ignored::deserialize(tracked, note)
                .map_err(Wrong::from)
                .and_then(|message| whole(message, &mut d))
        }
    };
    result
        .map_err(|error| malformed(encoding, &plain_path(&track.path().to_string()), &error, bytes))
}

fn whole<'de, T, R: rmp_serde::decode::ReadSlice<'de>>(
    message: T,
    d: &mut rmp_serde::Deserializer<R>,
) -> Result<T, Wrong> {
    let trailing = || Wrong { text: "trailing bytes".to_owned(), is_data: false };
    if is_at_end(d) { Ok(message) } else { Err(trailing()) }
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

/// What a reader found wrong.
struct Wrong {
    text: String,
    /// The encoding was right, what it says is not.
    is_data: bool,
}

impl From<serde_json::Error> for Wrong {
    fn from(error: serde_json::Error) -> Self {
        Self { text: error.to_string(), is_data: error.is_data() }
    }
}

impl From<rmp_serde::decode::Error> for Wrong {
    fn from(error: rmp_serde::decode::Error) -> Self {
        Self { text: error.to_string(), is_data: false }
    }
}

fn malformed(encoding: Encoding, path: &str, wrong: &Wrong, bytes: &[u8]) -> Refusal {
    let error = wrong.text.as_str();
    let shown: String = place_and_words(wrong, bytes).chars().take(300).collect();
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
    let is_object = wrong.is_data && bytes.trim_ascii_start().starts_with(b"{");
    if encoding == Encoding::Json && path.is_empty() && !is_object {
        return refusal.hint("without a header the payload must be one JSON object");
    }
    refusal
}

/// What is wrong in words, and where: the line only where there are several, the column only where
/// no field can be named.
fn place_and_words(wrong: &Wrong, bytes: &[u8]) -> String {
    let place = wrong.text.rsplit_once(" at line ").and_then(|(text, place)| {
        let (line, column) = place.split_once(" column ")?;
        Some((text, line.parse::<u64>().ok()?, column.parse::<u64>().ok()?))
    });
    let Some((text, line, column)) = place else { return in_words(&wrong.text) };
    let words = in_words(text);
    match (bytes.trim_ascii().contains(&b'\n'), wrong.is_data) {
        (true, _) => format!("{words} at line {line} column {column}"),
        (false, true) => words,
        (false, false) => format!("{words} at column {column}"),
    }
}

/// Says without the words of the language that this is written in what a reader found wrong.
fn in_words(error: &str) -> String {
    for kind in ["invalid type: ", "invalid value: "] {
        let taken = error.strip_prefix(kind).and_then(|rest| rest.rsplit_once(", expected "));
        if let Some((found, expected)) = taken {
            return format!(
                "expected {}, not {}",
                expected_in_words(expected),
                found_in_words(found)
            );
        }
    }
    if let Some(marker) = error.strip_prefix("wrong msgpack marker ") {
        return format!("{} does not belong here", marker_in_words(marker));
    }
    if let Some(within) = error.strip_prefix("EOF while parsing ") {
        return format!("it ends within {within}");
    }
    match error {
        "expected value" => "expected a value",
        "recursion limit exceeded" | "depth limit exceeded" => "it is nested too deeply",
        other => other,
    }
    .to_owned()
}

fn expected_in_words(expected: &str) -> String {
    let most = match expected {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        _ => 0,
    };
    if most > 0 {
        return format!("a whole number from 0 to {most}");
    }
    match expected {
        "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        "string or map" => "a string or an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
    .to_owned()
}

fn found_in_words(found: &str) -> String {
    match found {
        "unit value" => return "null".to_owned(),
        "sequence" => return "a list".to_owned(),
        "map" => return "an object".to_owned(),
        "byte array" => return "bytes".to_owned(),
        _ => {}
    }
    let quoted = ["integer `", "floating point `", "boolean `"]
        .iter()
        .find_map(|kind| found.strip_prefix(kind)?.strip_suffix('`'));
    let value = quoted.or_else(|| found.strip_prefix("string ")).unwrap_or(found);
    if value.chars().count() <= SHOWN {
        return value.to_owned();
    }
    value.chars().take(SHOWN).chain(['…']).collect()
}

/// So many characters of a value are repeated to who wrote it.
const SHOWN: usize = 80;

fn marker_in_words(marker: &str) -> &'static str {
    let kind = marker.split('(').next().unwrap_or(marker);
    match kind {
        "FixStr" | "Str8" | "Str16" | "Str32" => "a string",
        "FixArray" | "Array16" | "Array32" => "a list",
        "FixMap" | "Map16" | "Map32" => "an object",
        "Bin8" | "Bin16" | "Bin32" => "a run of bytes",
        "True" | "False" => "true or false",
        "Null" => "null",
        "Reserved" => "an unused marker",
        other if other.starts_with("Fix") || other.starts_with(['U', 'I', 'F']) => "a number",
        _ => "an extension",
    }
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
    let root = schema_of::<T>();
    let schemas = schemas_at(&root, parent);
    let known = known_fields(&root, &schemas);
    let at = if parent.is_empty() { String::new() } else { format!(" in `{parent}`") };
    let refusal =
        Refusal::new(code::UNKNOWN_FIELD, format!("there is no field `{shown}`{at}")).field(path);
    // The very name, only deeper, says more than one that looks like it.
    let below = field_below(&root, &schemas, field);
    match below.as_deref().or_else(|| nearest(field, known.iter().map(String::as_str))) {
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

/// The schemas of what is at a path.
fn schemas_at<'a>(root: &'a Value, path: &str) -> Vec<&'a Value> {
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
    at
}

/// The fields of what schemas describe, each with its own schema.
fn fields<'a>(root: &'a Value, schemas: &[&'a Value]) -> BTreeMap<&'a str, &'a Value> {
    schemas
        .iter()
        .flat_map(|schema| resolve(root, schema))
        .filter_map(|schema| schema.get("properties")?.as_object())
        .flat_map(|fields| fields.iter().map(|(name, schema)| (name.as_str(), schema)))
        .collect()
}

fn known_fields(root: &Value, schemas: &[&Value]) -> Vec<String> {
    fields(root, schemas).into_keys().map(str::to_owned).collect()
}

/// So many fields deep a name is looked for.
const DEEPEST: usize = 4;

/// The shortest path to a field of this name below what schemas describe.
fn field_below(root: &Value, schemas: &[&Value], field: &str) -> Option<String> {
    let mut level: Vec<(String, &Value)> =
        schemas.iter().map(|schema| (String::new(), *schema)).collect();
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for (path, schema) in level {
            for (name, schema) in fields(root, &[schema]) {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{name}");
                if name == field {
                    return Some(path);
                }
                let items = resolve(root, schema).into_iter().filter_map(|s| s.get("items"));
                next.extend(items.map(|items| (format!("{path}[]"), items)));
                next.push((path, schema));
            }
        }
        level = next;
    }
    None
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
    fn a_field_that_exists_deeper_gets_its_path() {
        let task = |field: &str| format!(r#"{{"tasks":[{{"name":"a",{field}}}]}}"#);
        for (json, near) in [
            (task(r#""argv":["x"]"#), "run.process.argv"),
            (task(r#""env":{}"#), "run.process.env"),
            (r#"{"argv":["a"],"cpus":1}"#.to_owned(), "resources.cpus"),
            (r#"{"argv":["a"],"needs":[]}"#.to_owned(), "tasks[].needs"),
        ] {
            let refusal = strict(&json);
            assert_eq!(&*refusal.code, code::UNKNOWN_FIELD, "{refusal:?}");
            assert_eq!(refusal.hint, Some(format!("did you mean `{near}`?")), "{refusal:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        for (json, said) in [
            (r#"{"argv":"uname"}"#, r#"`argv`: expected a list, not "uname""#),
            (r#"{"env":[1]}"#, "`env`: expected an object, not a list"),
            (r#"{"tasks":[5]}"#, "`tasks[0]`: expected an object, not 5"),
            (r#"{"open":"yes"}"#, r#"`open`: expected true or false, not "yes""#),
            (r#"{"priority":1.5}"#, "`priority`: expected a whole number, not 1.5"),
            (
                r#"{"retries":-1}"#,
                "`retries`: expected a whole number from 0 to 4294967295, not -1",
            ),
            (
                r#"{"resources":{"memory_mib":-1}}"#,
                "`resources.memory_mib`: expected a whole number, 0 or more, not -1",
            ),
            (r#"{"resources":{"cpus":"x"}}"#, r#"`resources.cpus`: expected a number, not "x""#),
            ("null", "expected an object, not null"),
            (r#"{"argv":["a"]"#, "it ends within an object at column 13"),
            (
                "{\n \"retries\": -1\n}",
                "`retries`: expected a whole number from 0 to 4294967295, not -1 at line 2 column 14",
            ),
            (r#"{"where":{"node":5}}"#, "`where.node`: expected a name or a list of names"),
        ] {
            assert_eq!(strict(json).message, format!("{said} (read as JSON)"));
        }
        let packed = rmp_serde::to_vec_named(&serde_json::json!({"timeout_s": "soon"})).unwrap();
        let refusal = decode_strict::<Submit>(Encoding::MsgPack, &packed).unwrap_err();
        assert_eq!(
            refusal.message,
            "`timeout_s`: a string does not belong here (read as MessagePack)"
        );
    }

    #[test]
    fn only_what_is_no_object_is_told_to_be_one() {
        let missing = decode_strict::<crate::request::Get>(Encoding::Json, b"{}").unwrap_err();
        assert_eq!(missing.message, "missing field `work` (read as JSON)");
        assert_eq!(missing.hint, None);
        for json in ["uname -a", "null", r#"{"argv":["a"]"#, r#"{"argv":["a"]} more"#] {
            let hint = strict(json).hint.unwrap_or_default();
            assert!(hint.contains("one JSON object"), "{json}: {hint}");
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
