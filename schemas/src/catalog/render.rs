//! What is made from the catalogue: JSON Schemas, `SUBJECTS.md`, the AsyncAPI document.
//!
//! `cargo run -p schemas --example generate` writes them into the folder of this crate; a test
//! fails when they are stale.

use super::{
    Answer, Body, CATALOG, Entry, Kind, OPTIONAL_CALLER, PLACEHOLDERS, REFUSAL, STORES, Who, Wire,
    example,
};
use crate::{SCHEMA, error::code, token::PATTERN};
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// The command that writes the files.
pub const COMMAND: &str = "cargo run -p schemas --example generate";

/// Every file that is made from the catalogue, by its path in the folder of this crate.
pub fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for name in super::schema_names() {
        let schema = super::schema(&name).expect("each of these names has a schema");
        files.insert(format!("json/{name}.json"), pretty(&schema));
    }
    files.insert("SUBJECTS.md".to_owned(), subjects());
    files.insert("asyncapi.json".to_owned(), pretty(&asyncapi()));
    files
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The JSON Schema (draft 2020-12) of one message.
pub(super) fn message_schema(body: Body, name: &str, what: &str) -> Value {
    let generator = settings(body.is_strict, SchemaSettings::draft2020_12()).into_generator();
    let mut schema = (body.root)(generator).to_value();
    if let Some(fields) = schema.as_object_mut() {
        let about = match fields.get("description").and_then(Value::as_str) {
            Some(of_type) => format!("{what}\n\n{of_type}"),
            None => what.to_owned(),
        };
        fields.insert("description".to_owned(), about.into());
        fields.insert("examples".to_owned(), example::of(name).into_iter().collect());
    }
    schema
}

/// What people write is described as it may be read, and admits no other fields; what parts say is
/// described as it is written.
fn settings(is_strict: bool, settings: SchemaSettings) -> SchemaSettings {
    if is_strict {
        settings.for_deserialize().with_transform(RecursiveTransform(close as fn(&mut Schema)))
    } else {
        settings.for_serialize()
    }
}

/// An object that does not say what else it may hold may hold nothing else.
fn close(schema: &mut Schema) {
    let is_object = match schema.get("type") {
        Some(Value::String(only)) => only == "object",
        Some(Value::Array(any)) => any.iter().any(|one| one == "object"),
        _ => false,
    };
    if is_object && schema.get("additionalProperties").is_none() {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
}

/// `SUBJECTS.md`.
fn subjects() -> String {
    let mut out = String::from(INTRODUCTION);
    for (title, first, about) in SECTIONS {
        let _ = write!(out, "\n## {title}\n\n{about}\n\n");
        out.push_str("| subject | kind | who → who | what | says | answer |\n");
        out.push_str("|---|---|---|---|---|---|\n");
        for entry in CATALOG.iter().filter(|entry| section(entry) == *first) {
            let cell = |text: &str| text.replace('|', "\\|");
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {} | {} |",
                cell(entry.subject),
                entry.kind,
                entry.direction(),
                cell(entry.what),
                entry.body.map_or("an empty message".to_owned(), |body| link(entry.name, body)),
                answer_cell(entry),
            );
        }
    }
    out.push_str("\n## Placeholders\n\n| token | stands for |\n|---|---|\n");
    for (name, what) in PLACEHOLDERS {
        let _ = writeln!(out, "| `<{}>` | {what} |", name.replace('|', "\\|"));
    }
    let _ = write!(
        out,
        "\nA token is `{}`. The last token of a client's request is the caller; `[.<caller>]` may \
         be left out by the owner: `lh.work.submit` is `lh.work.submit.owner`. Other subjects that \
         begin with `lh.` are kept for later.\n",
        PATTERN.trim_matches(['^', '$']),
    );
    out.push_str("\n## Stores\n\n| name | is | keeps | what |\n|---|---|---|---|\n");
    for store in STORES {
        let what = store.value.map_or(store.what.to_owned(), |value| {
            format!("{} A value holds a `{}`.", store.what, value.type_name())
        });
        let is = if store.is_bucket { "bucket of keys" } else { "stream" };
        let keeps = match store.keeps.contains(' ') {
            true => store.keeps.to_owned(),
            false => format!("`{}`", store.keeps),
        };
        let _ = writeln!(out, "| `{}` | {is} | {keeps} | {what} |", store.name);
    }
    out.push_str("\n## Refusals\n\nIn the place of any answer: ");
    let _ = writeln!(out, "{}. The codes are never renamed.\n", link("error", REFUSAL));
    out.push_str("| code | number |\n|---|---|\n");
    for (name, status) in code::ALL {
        let _ = writeln!(out, "| `{name}` | {status} |");
    }
    out
}

const INTRODUCTION: &str = "\
# What may be said in a house

Made from `src/catalog.rs` by `cargo run -p schemas --example generate`. Do not edit.

Requests are JSON, or MessagePack with named fields under the header `Content-Type:
application/msgpack`; `Accept` chooses the answer's encoding, else it is the request's. Facts, beats
and keys are always JSON, frames of output always MessagePack. Bytes are `bin` in MessagePack; in
JSON a string where they are valid UTF-8, else `{\"base64\": \"…\"}`. In what people write a field
that is not known is refused; between parts it is passed over.
";

/// Title, the first token of the names in it, what it is about.
const SECTIONS: &[(&str, &str, &str)] = &[
    ("Works", "work", "What clients ask of managers."),
    ("Schedulers", "sched", "What is asked of the acting scheduler of a pool."),
    (
        "Facts",
        "fact",
        "The journal: immutable, in one total order. Everything that counts is here.",
    ),
    ("Nodes", "node", "What schedulers and nodes say to each other."),
    ("Output", "out", "What jobs write."),
];

/// To which section an entry belongs.
fn section(entry: &Entry) -> &'static str {
    match entry.name.split('.').next().unwrap_or_default() {
        "work" | "ack" | "inbox" => "work",
        "sched" => "sched",
        "fact" => "fact",
        "out" | "live" => "out",
        _ => "node",
    }
}

fn link(name: &str, body: Body) -> String {
    format!("[`{}`](json/{name}.json)", body.type_name())
}

fn answer_cell(entry: &Entry) -> String {
    let name = format!("{}.reply", entry.name);
    match entry.answer {
        Answer::None => "—".to_owned(),
        Answer::Now(body) => link(&name, body),
        Answer::Held(body) => format!("{}, held", link(&name, body)),
        Answer::Many(body) => format!("many {}, then an empty message", link(&name, body)),
    }
}

/// The AsyncAPI 3.0 document, seen from the house: it receives what clients say and sends the rest.
fn asyncapi() -> Value {
    let mut types = Types::default();
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    let mut replies = Map::new();
    messages.insert("error".to_owned(), types.message("error", "Why it was refused.", REFUSAL));
    replies.insert("error".to_owned(), json!({ "$ref": "#/components/messages/error" }));
    messages.insert("empty".to_owned(), empty_message());
    for entry in CATALOG {
        let key = match entry.body {
            None => "empty".to_owned(),
            Some(body) => {
                let message = types.message(entry.name, entry.what, body);
                messages.insert(entry.name.to_owned(), with_encodings(message, entry.wire));
                entry.name.to_owned()
            }
        };
        channels.insert(entry.name.to_owned(), channel(entry, &key));
        let mut operation = operation(entry, &key);
        if let Some(body) = entry.answer.body() {
            let name = format!("{}.reply", entry.name);
            let about = format!("The answer to `{}`.", entry.name);
            let message = types.message(&name, &about, body);
            messages.insert(name.clone(), with_encodings(message, entry.wire));
            replies
                .insert(name.clone(), json!({ "$ref": format!("#/components/messages/{name}") }));
            let mut answers = vec![name, "error".to_owned()];
            if matches!(entry.answer, Answer::Many(_)) {
                answers.push("empty".to_owned());
                replies
                    .insert("empty".to_owned(), json!({ "$ref": "#/components/messages/empty" }));
            }
            let answers: Vec<Value> = answers
                .iter()
                .map(|name| json!({ "$ref": format!("#/channels/reply/messages/{name}") }))
                .collect();
            operation["reply"] =
                json!({ "channel": { "$ref": "#/channels/reply" }, "messages": answers });
        }
        operations.insert(entry.name.to_owned(), operation);
    }
    channels.insert(
        "reply".to_owned(),
        json!({
            "address": null,
            "title": "Answers",
            "description": "The reply subject that a request carries.",
            "messages": replies,
        }),
    );
    let schemas = types.components(&mut messages);
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Longhouse",
            "version": format!("{SCHEMA}.0.0"),
            "description": format!(
                "What may be said in a house, seen from the house: it receives what clients ask \
                 and sends what it has to say. Made from the catalogue by `{COMMAND}`."
            ),
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "house": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "The bus of a house; `longhouse env` says where it is.",
            },
        },
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages, "schemas": schemas },
    })
}

fn empty_message() -> Value {
    json!({
        "name": "empty",
        "summary": "A message without a body.",
        "payload": { "type": "string", "maxLength": 0 },
    })
}

fn with_encodings(mut message: Value, wire: Wire) -> Value {
    match wire {
        Wire::Json => {}
        Wire::MsgPack => message["contentType"] = "application/msgpack".into(),
        Wire::Either => {
            message["description"] =
                "JSON; or MessagePack with named fields, said by the header `Content-Type: \
                 application/msgpack`."
                    .into();
        }
    }
    message
}

/// `lh.work.submit[.<caller>]` is `lh.work.submit.{caller}` here.
fn channel(entry: &Entry, message: &str) -> Value {
    let full = entry.subject.replace(OPTIONAL_CALLER, ".<caller>");
    let mut address = full.clone();
    let mut parameters = Map::new();
    for (placeholder, what) in PLACEHOLDERS {
        let written = format!("<{placeholder}>");
        if full.contains(&written) {
            let name = placeholder.split('|').next().unwrap_or(placeholder);
            address = address.replace(&written, &format!("{{{name}}}"));
            parameters.insert(name.to_owned(), json!({ "description": what }));
        }
    }
    let mut channel = json!({
        "address": address,
        "title": entry.name,
        "description": format!("{} ({}, {})", entry.what, entry.kind, entry.direction()),
        "messages": { message: { "$ref": format!("#/components/messages/{message}") } },
    });
    if !parameters.is_empty() {
        channel["parameters"] = parameters.into();
    }
    channel
}

fn operation(entry: &Entry, message: &str) -> Value {
    let is_asked = entry.kind == Kind::Request || entry.from.contains(&Who::Client);
    json!({
        "action": if is_asked { "receive" } else { "send" },
        "channel": { "$ref": format!("#/channels/{}", entry.name) },
        "summary": entry.what,
        "messages": [{ "$ref": format!("#/channels/{}/messages/{message}", entry.name) }],
    })
}

/// Where AsyncAPI keeps schemas.
const COMPONENTS: &str = "/components/schemas";

/// The types of all messages: some look otherwise when people write them than when parts say them.
struct Types {
    written: SchemaGenerator,
    said: SchemaGenerator,
}

impl Default for Types {
    fn default() -> Self {
        // AsyncAPI's own kind of schema is a superset of draft 07.
        let generator = |is_strict| {
            let shape = SchemaSettings::draft07().with(|s| s.definitions_path = COMPONENTS.into());
            settings(is_strict, shape).into_generator()
        };
        Self { written: generator(true), said: generator(false) }
    }
}

/// What the name of a type ends in where people write it and it looks otherwise than when said.
const WRITTEN: &str = ".written";

impl Types {
    fn message(&mut self, name: &str, what: &str, body: Body) -> Value {
        let generator = if body.is_strict { &mut self.written } else { &mut self.said };
        let payload = (body.subschema)(generator).to_value();
        let mut message = json!({ "name": name, "summary": what, "payload": payload });
        if body.is_strict {
            // Marked for now; `components` knows which of them differ.
            rename(&mut message["payload"], &mut |of| format!("{of}{WRITTEN}"));
        }
        if let Some(example) = example::of(name) {
            message["examples"] = json!([{ "payload": example }]);
        }
        message
    }

    /// The types; and the messages that people write are pointed to theirs.
    fn components(mut self, messages: &mut Map<String, Value>) -> Map<String, Value> {
        let mut all = self.said.take_definitions(true);
        let written = self.written.take_definitions(true);
        let differ = differing(&written, &all);
        let plain = |name: &str| match name.strip_suffix(WRITTEN) {
            Some(plain) if !differ.contains(plain) => plain.to_owned(),
            _ => name.to_owned(),
        };
        for message in messages.values_mut() {
            rename(message, &mut |to| plain(to));
        }
        for (name, mut schema) in written {
            rename(&mut schema, &mut |of| plain(&format!("{of}{WRITTEN}")));
            all.insert(plain(&format!("{name}{WRITTEN}")), schema);
        }
        all
    }
}

/// The types of which there are two forms, be it only because they hold one of which there are.
fn differing(written: &Map<String, Value>, said: &Map<String, Value>) -> BTreeSet<String> {
    let mut differ = BTreeSet::new();
    loop {
        let before = differ.len();
        for (name, schema) in written {
            let Some(other) = said.get(name) else { continue };
            let mut holds_one = false;
            rename(&mut schema.clone(), &mut |to| {
                holds_one |= differ.contains(to);
                to.to_owned()
            });
            if holds_one || schema != other {
                differ.insert(name.clone());
            }
        }
        if differ.len() == before {
            return differ;
        }
    }
}

/// Gives other names to the types that a schema refers to.
fn rename(schema: &mut Value, name: &mut dyn FnMut(&str) -> String) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                let target = value.as_str().and_then(|to| to.strip_prefix("#/components/schemas/"));
                match target.filter(|_| key == "$ref") {
                    Some(target) => {
                        *value = format!("#{COMPONENTS}/{}", name(target)).into();
                    }
                    None => rename(value, name),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, name)),
        _ => {}
    }
}
