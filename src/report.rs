//! What a command returns: a text for a person, JSON for a program, a code for the shell.

use serde::Serialize;
use std::fmt::Display;

/// The result of a command; `main` prints it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    text: String,
    json: Option<Json>,
    /// What the process ends with.
    pub(crate) code: u8,
}

/// A message as JSON, its fields in the order in which the wire has them.
#[derive(Debug)]
struct Json {
    line: String,
    pretty: String,
}

impl Json {
    fn of(message: &impl Serialize) -> Self {
        let known = "messages have string keys only";
        Self {
            line: serde_json::to_string(message).expect(known),
            pretty: serde_json::to_string_pretty(message).expect(known),
        }
    }
}

impl Report {
    /// Something that a person reads by its `Display` and a program by its `Serialize`.
    pub(crate) fn of(value: &(impl Display + Serialize)) -> Self {
        Self::pair(value, value)
    }

    /// A text and the message of the wire that it was made from.
    pub(crate) fn pair(text: impl Display, message: &impl Serialize) -> Self {
        Self { text: text.to_string(), json: Some(Json::of(message)), code: 0 }
    }

    /// Text only, the same for people and programs.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), json: None, code: 0 }
    }

    /// Nothing (more) to say.
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    #[must_use]
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// What is to be printed.
    pub(crate) fn render(&self, as_json: bool, pretty: bool) -> String {
        let mut out = match &self.json {
            Some(json) if as_json && pretty => json.pretty.clone(),
            Some(json) if as_json => json.line.clone(),
            _ => self.text.clone(),
        };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_one_line_and_a_person_gets_text() {
        let report = Report::pair("two works", &serde_json::json!({"works": [1, 2]}));
        assert_eq!(report.render(true, false), "{\"works\":[1,2]}\n");
        assert_eq!(report.render(false, true), "two works\n");
        assert_eq!(Report::nothing().render(true, true), "");
    }
}
