//! What is made from the catalogue is committed, and as fresh as the catalogue.

#![expect(clippy::unwrap_used, reason = "a test may stop at what should not be")]

use schemas::catalog::{Answer, CATALOG, render};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

fn committed(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

#[test]
fn generated_files_are_fresh() {
    let files = render::files();
    let mut stale: Vec<String> = files
        .iter()
        .filter(|(path, text)| committed(path).as_ref() != Some(text))
        .map(|(path, _)| path.clone())
        .collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("json");
    for entry in fs::read_dir(folder).unwrap() {
        let path = format!("json/{}", entry.unwrap().file_name().into_string().unwrap());
        if !files.contains_key(&path) {
            stale.push(format!("{path} (no longer made)"));
        }
    }
    assert!(
        stale.is_empty(),
        "stale in `schemas/`:\n  {}\nrun `{}` and commit what it writes",
        stale.join("\n  "),
        render::COMMAND
    );
}

/// Follows a reference of a JSON document into itself.
fn follow<'a>(root: &'a Value, reference: &Value) -> &'a Value {
    let text = reference.as_str().expect("a reference is a string");
    let pointer = text.strip_prefix('#').expect("references stay in the document");
    root.pointer(pointer).unwrap_or_else(|| panic!("`{text}` leads nowhere"))
}

fn references<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(_) if key == "$ref" => found.push(value),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn no_reference_leads_nowhere() {
    for (path, text) in render::files().iter().filter(|(path, _)| path.ends_with(".json")) {
        let document: Value = serde_json::from_str(text).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in found {
            assert!(follow(&document, reference).is_object(), "{path}: {reference}");
        }
        if path.starts_with("json/") {
            assert_eq!(document["$schema"], "https://json-schema.org/draft/2020-12/schema");
            assert!(document["description"].is_string(), "{path}");
            assert!(!document["examples"].as_array().unwrap().is_empty(), "{path}");
        }
    }
}

fn asyncapi() -> Value {
    serde_json::from_str(&render::files()["asyncapi.json"]).unwrap()
}

/// What the specification of AsyncAPI 3.0.0 demands of the parts that are used here.
#[test]
fn the_asyncapi_document_is_whole() {
    let document = asyncapi();
    let key = |text: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    assert_eq!(document["asyncapi"], "3.0.0");
    for field in ["title", "version"] {
        assert!(document["info"][field].is_string(), "info.{field}");
    }
    for (name, server) in document["servers"].as_object().unwrap() {
        assert!(key(name) && server["host"].is_string() && server["protocol"].is_string());
    }
    for (name, channel) in document["channels"].as_object().unwrap() {
        assert!(key(name), "{name}");
        assert!(!channel["messages"].as_object().unwrap().is_empty(), "{name}");
        let address = channel["address"].as_str().unwrap_or_default();
        let used: BTreeSet<&str> =
            address.split('{').skip(1).map(|part| part.split('}').next().unwrap()).collect();
        let declared: BTreeSet<&str> = channel["parameters"]
            .as_object()
            .into_iter()
            .flat_map(|parameters| parameters.keys().map(String::as_str))
            .collect();
        assert_eq!(used, declared, "the parameters of `{name}`");
        assert!(!address.contains(['<', '>', '[', ']', '*']), "{address}");
    }
    for (name, operation) in document["operations"].as_object().unwrap() {
        assert!(key(name) && ["send", "receive"].contains(&operation["action"].as_str().unwrap()));
        assert_messages_of_channel(&document, operation, name);
        if let Some(reply) = operation.get("reply") {
            assert_messages_of_channel(&document, reply, name);
        }
    }
    for (name, message) in document["components"]["messages"].as_object().unwrap() {
        assert!(key(name) && message["name"] == *name && message["payload"].is_object(), "{name}");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(key(name), "{name}");
    }
}

/// An operation, or its reply, speaks of messages of its own channel only.
fn assert_messages_of_channel(document: &Value, part: &Value, name: &str) {
    let channel = &part["channel"]["$ref"];
    assert!(follow(document, channel)["messages"].is_object(), "{name}");
    let prefix = format!("{}/messages/", channel.as_str().unwrap());
    let messages = part["messages"].as_array().unwrap();
    assert!(!messages.is_empty(), "{name}");
    for message in messages {
        assert!(message["$ref"].as_str().unwrap().starts_with(&prefix), "{name}: {message}");
        let shared = follow(document, &message["$ref"]);
        assert!(follow(document, &shared["$ref"])["payload"].is_object(), "{name}");
    }
}

#[test]
fn every_entry_is_an_operation_and_every_request_is_answered() {
    let document = asyncapi();
    let operations = document["operations"].as_object().unwrap();
    assert_eq!(operations.len(), CATALOG.len());
    for entry in CATALOG {
        let operation = &operations[entry.name];
        let answers = operation["reply"]["messages"].as_array().map_or(0, Vec::len);
        let expected = match entry.answer {
            Answer::None => 0,
            Answer::Now(_) | Answer::Held(_) => 2,
            Answer::Many(_) => 3,
        };
        assert_eq!(answers, expected, "{}", entry.name);
    }
}
