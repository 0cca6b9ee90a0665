//! Reads works from files, in TOML or JSON, and says on which line something is wrong.

use crate::failure::{Failure, typed_hint};
use anyhow::Context;
use schemas::{
    codec::{self, Encoding},
    error::Refusal,
    work::{Submit, check},
};
use std::{io::Read, path::Path};

/// How a work is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Toml,
}

/// Reads and checks a work; `-` is standard input.
pub(crate) fn read(file: &str) -> anyhow::Result<Submit> {
    let (name, text) = if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("could not read standard input")?;
        ("standard input".to_owned(), text)
    } else {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Failure::usage(format!("could not read `{file}`: {error}")))?;
        (file.to_owned(), text)
    };
    let format = match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Format::Toml,
        Some("json") => Format::Json,
        _ if text.trim_start().starts_with('{') || is_json_list(&text) => Format::Json,
        _ => Format::Toml,
    };
    Ok(parse(&name, &text, format)?)
}

/// A TOML text may begin with `[`, too.
fn is_json_list(text: &str) -> bool {
    serde_json::from_str::<Vec<serde::de::IgnoredAny>>(text).is_ok()
}

fn parse(name: &str, text: &str, format: Format) -> Result<Submit, Failure> {
    let wrong = |refusal: Refusal| {
        let path = refusal.field.as_deref().unwrap_or_default();
        let line = match format {
            Format::Json => json_line(text, path),
            Format::Toml => toml_line(text, path),
        };
        let place = line.map_or(name.to_owned(), |line| format!("{name}, line {line}"));
        let mut message = refusal.message.replace(" (read as JSON)", "");
        if format == Format::Toml {
            // A position in the JSON that was made of it, which nobody has seen.
            message.truncate(without_position(&message).len());
        }
        let mut failure = Failure::usage(format!("{place}: {message}"));
        failure.hint = typed_hint(refusal.hint);
        failure
    };
    let json = match format {
        Format::Json if is_json_list(text) => {
            return Err(Failure::usage(format!("{name}: a list came, not one object"))
                .hint("a file holds one work; its jobs are the list `tasks` in it"));
        }
        Format::Json => text.to_owned(),
        Format::Toml => {
            if let Ok(table) = text.parse::<toml::Table>()
                && let Some(path) = not_finite(&toml::Value::Table(table), "")
            {
                let place = toml_line(text, &path).map_or(String::new(), |n| format!(", line {n}"));
                return Err(Failure::usage(format!("{name}{place}: `{path}` is no finite number")));
            }
            let value: serde_json::Value = toml::from_str(text).map_err(|error| {
                Failure::usage(format!("{name}: {}", said_by_toml(&error, text)))
            })?;
            value.to_string()
        }
    };
    let submit: Submit = codec::decode_strict(Encoding::Json, json.as_bytes()).map_err(wrong)?;
    // The manager checks it, too; here the line can be named.
    check::normalise(submit.clone()).and_then(|spec| check::check(&spec)).map_err(wrong)?;
    Ok(submit)
}

/// A sentence without ` at line 1 column 36` at its end.
fn without_position(message: &str) -> &str {
    match message.rsplit_once(" at line ") {
        Some((sentence, position))
            if position.split(" column ").all(|n| n.parse::<usize>().is_ok()) =>
        {
            sentence
        }
        _ => message,
    }
}

/// Where there is a `nan` or an `inf`, which JSON does not know.
fn not_finite(value: &toml::Value, path: &str) -> Option<String> {
    match value {
        toml::Value::Float(number) => (!number.is_finite()).then(|| path.to_owned()),
        toml::Value::Table(table) => table.iter().find_map(|(key, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            not_finite(value, &format!("{path}{dot}{key}"))
        }),
        toml::Value::Array(array) => array
            .iter()
            .enumerate()
            .find_map(|(n, value)| not_finite(value, &format!("{path}[{n}]"))),
        _ => None,
    }
}

fn said_by_toml(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().trim_end();
    match error.span() {
        Some(span) => format!("line {}: {message}", line_at(text, span.start)),
        None => message.to_owned(),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// `tasks[0].run` as its steps.
fn steps(path: &str) -> Vec<&str> {
    path.split(['.', '['])
        .map(|step| step.trim_end_matches(']'))
        .filter(|s| !s.is_empty())
        .collect()
}

/// The line of the deepest thing on a path that is there.
fn toml_line(text: &str, path: &str) -> Option<usize> {
    use toml::de::{DeTable, DeValue};
    let table = DeTable::parse(text).ok()?;
    let root = DeValue::Table(table.get_ref().clone());
    let (mut at, mut line) = (&root, None);
    for step in steps(path) {
        match at {
            DeValue::Table(table) => {
                let found = table.iter().find(|(key, _)| key.get_ref() == step);
                let Some((key, value)) = found else { break };
                line = Some(line_at(text, key.span().start));
                at = value.get_ref();
            }
            DeValue::Array(array) => {
                let Some(value) = step.parse().ok().and_then(|n: usize| array.get(n)) else {
                    break;
                };
                line = Some(line_at(text, value.span().start));
                at = value.get_ref();
            }
            _ => break,
        }
    }
    line
}

/// The line of the deepest thing on a path that is there; `text` may be broken behind it.
fn json_line(text: &str, path: &str) -> Option<usize> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    let mut found = None;
    for step in steps(path) {
        let Some(at) = scan.enter(step) else { break };
        found = Some(line_at(text, at));
    }
    found
}

/// Walks through JSON without reading it.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Goes to the value of a field or an element, and says where that begins.
    fn enter(&mut self, step: &str) -> Option<usize> {
        match self.peek()? {
            b'{' => {
                self.at += 1;
                loop {
                    self.peek()?;
                    let start = self.at;
                    let key = self.string()?;
                    self.expect(b':')?;
                    if key == step.as_bytes() {
                        self.peek()?;
                        return Some(start);
                    }
                    self.skip()?;
                    self.expect(b',')?;
                }
            }
            b'[' => {
                self.at += 1;
                for _ in 0..step.parse::<usize>().ok()? {
                    self.skip()?;
                    self.expect(b',')?;
                }
                self.peek()?;
                Some(self.at)
            }
            _ => None,
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.bytes[start..self.at - 1]);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Goes behind a value.
    fn skip(&mut self) -> Option<()> {
        let mut depth = 0_u32;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                _ => {
                    let ends = |b: &u8| b",:]}".contains(b) || b.is_ascii_whitespace();
                    let start = self.at;
                    self.at += self.bytes[self.at..].iter().position(ends)?;
                    if self.at == start {
                        return None;
                    }
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> Result<Submit, Failure> {
        parse("work.toml", text, Format::Toml)
    }

    fn json(text: &str) -> Result<Submit, Failure> {
        parse("work.json", text, Format::Json)
    }

    #[test]
    fn a_work_reads_the_same_in_both_formats() {
        let from_toml = toml(
            "name = 'two'\n[[tasks]]\nname = 'a'\nrun.process.argv = ['true']\n\
             [[tasks]]\nname = 'b'\nneeds = ['a']\nrun.process.argv = ['true']\ntimeout_s = 1.5\n",
        );
        let from_json = json(
            r#"{"name": "two", "tasks": [
                {"name": "a", "run": {"process": {"argv": ["true"]}}},
                {"name": "b", "needs": ["a"], "run": {"process": {"argv": ["true"]}},
                 "timeout_s": 1.5}]}"#,
        );
        assert_eq!(from_toml.unwrap(), from_json.unwrap());
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line_and_the_nearest_name() {
        let failure = toml("name = 'x'\n\n[[tasks]]\nname = 'a'\nneeeds = []\n").unwrap_err();
        assert!(failure.message.starts_with("work.toml, line 5:"), "{failure}");
        assert_eq!(failure.hint.as_deref(), Some("did you mean `needs`?"));

        let failure = json("{\"name\": \"x\",\n \"argvv\": []\n}").unwrap_err();
        assert!(failure.message.starts_with("work.json, line 2:"), "{failure}");
        assert_eq!(failure.hint.as_deref(), Some("did you mean `argv`?"));
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_line() {
        let failure = toml("argv = ['true']\nretries = 'many'\n").unwrap_err();
        assert!(failure.message.starts_with("work.toml, line 2: `retries`"), "{failure}");
        let failure = json("{\"tasks\": [{\"name\": \"a\"},\n{\"name\": \"B C\"}]}").unwrap_err();
        assert!(failure.message.contains("`tasks[0]`"), "{failure}");
    }

    #[test]
    fn what_is_no_toml_or_json_is_said_with_its_line() {
        assert!(toml("argv = [\n").unwrap_err().message.contains("line "));
        assert!(json("{\n\n!").unwrap_err().message.contains("line 3"));
    }

    #[test]
    fn numbers_that_are_none_are_refused_with_their_line() {
        for number in ["nan", "inf", "-inf"] {
            let text = format!("argv = ['true']\ntimeout_s = {number}\n");
            let failure = toml(&text).unwrap_err();
            assert_eq!(failure.message, "work.toml, line 2: `timeout_s` is no finite number");
        }
        let failure = toml("[[tasks]]\nname = 'a'\nresources.cpus = inf\n").unwrap_err();
        assert!(failure.message.contains("`tasks[0].resources.cpus`"), "{failure}");
    }

    #[test]
    fn positions_are_those_of_the_file_and_hints_are_not_for_the_bus() {
        let failure = toml("argv = ['true']\nretries = 'many'\n").unwrap_err();
        assert!(!failure.message.contains("column"), "{failure}");
        assert_eq!(without_position("x at line 1 column 36"), "x");
        assert_eq!(without_position("x at line noon"), "x at line noon");
        let failure = json("[{\"argv\": [\"true\"]}]").unwrap_err();
        assert_eq!(failure.message, "work.json: a list came, not one object");
        let failure = json("3").unwrap_err();
        assert!(!failure.hint.unwrap_or_default().contains("header"));
    }

    #[test]
    fn a_circle_of_needs_is_found_here_already() {
        let failure = toml(
            "[[tasks]]\nname = 'a'\nneeds = ['b']\nrun.echo = 'x'\n\
             [[tasks]]\nname = 'b'\nneeds = ['a']\nrun.echo = 'x'\n",
        )
        .unwrap_err();
        assert!(failure.message.contains("line "), "{failure}");
    }

    #[test]
    fn lines_are_found_behind_strings_that_look_like_structure() {
        let text = "{\"a\": \"}],{\\\"\",\n\"b\": [1, {\"x\": [2]},\n {\"c\": 1}]}";
        assert_eq!(json_line(text, "b[1].x"), Some(2));
        assert_eq!(json_line(text, "b[2].c"), Some(3));
        assert_eq!(json_line(text, "b[9]"), Some(2));
        assert_eq!(json_line(text, "nothing"), None);
    }
}
