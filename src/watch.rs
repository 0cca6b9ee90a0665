//! `longhouse watch`: the bus's traffic, in words.

use crate::{app::App, report::Report, style, terminal};
use bus::{Message, clock};
use futures::{StreamExt, stream::SelectAll};
use owo_colors::OwoColorize;
use schemas::{
    catalog::{self, Entry, Kind},
    time::Stamp,
};
use serde_json::{Value, json};

/// So much of a message is shown, unless everything is asked for.
const SHOWN_CHARS: usize = 400;

/// Watch the bus's traffic, in words
///
/// Shows who says what to whom, MessagePack as JSON. Requests go to the one who answers them and
/// are seen here too; answers are not. Ends with Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// Only these subjects; `*` stands for one word, `>` for the rest
    #[arg(default_value = "lh.>")]
    subjects: Vec<String>,
    /// Messages whole, however long
    #[arg(long)]
    whole: bool,
    /// Also heartbeats, which come every two seconds from each node
    #[arg(long)]
    beats: bool,
}

impl Watch {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let mut heard = SelectAll::new();
        for subject in &self.subjects {
            heard.push(house.bus.hear(subject).await?);
        }
        house.bus.flush().await?;
        let explicit = self.subjects.iter().any(|subject| subject.starts_with("lh.beat"));
        while let Some(message) = heard.next().await {
            if message.subject.starts_with("lh.beat.") && !(self.beats || explicit) {
                continue;
            }
            let line = match app.json {
                true => line_json(&message, clock::wall()),
                false => line(&message, clock::wall(), self.whole),
            };
            terminal::print(&line)?;
        }
        Ok(Report::nothing())
    }
}

fn body(message: &Message) -> Value {
    catalog::decode(&message.subject, message.encoding, &message.payload)
}

fn line_json(message: &Message, now: Stamp) -> String {
    let entry = catalog::of_subject(&message.subject);
    let value = json!({
        "at": now,
        "subject": message.subject,
        "message": entry.map(|entry| entry.name),
        "encoding": message.encoding.name(),
        "body": body(message),
    });
    format!("{value}\n")
}

fn line(message: &Message, now: Stamp, whole: bool) -> String {
    let time = style::moment(now, now);
    let words = match catalog::of_subject(&message.subject) {
        Some(entry) => words(entry, &message.subject),
        None => message.subject.clone(),
    };
    let mut shown = match body(message) {
        Value::Null => String::new(),
        value => value.to_string(),
    };
    if !whole && shown.chars().count() > SHOWN_CHARS {
        shown = shown.chars().take(SHOWN_CHARS).collect();
        shown.push_str(&format!("… ({} bytes)", message.payload.len()));
    }
    format!("{} {} {shown}\n", time.dimmed(), words.bold())
}

/// `client owner asks work.submit`, `manager says fact.accepted (owner, 0198f0c2…)`.
fn words(entry: &Entry, subject: &str) -> String {
    let parts = entry.parts(subject).unwrap_or_default();
    let speaker = parts.iter().find(|(name, _)| *name == "caller").map(|(_, caller)| *caller);
    let from: Vec<&str> = entry.from.iter().map(|who| who.as_str()).collect();
    let who = match speaker {
        Some(caller) => format!("{} {caller}", from.join("/")),
        None => from.join("/"),
    };
    let verb = if entry.kind == Kind::Request { "asks" } else { "says" };
    let about: Vec<&str> =
        parts.iter().filter(|(name, _)| *name != "caller").map(|(_, token)| *token).collect();
    let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join(", ")) };
    format!("{who} {verb} {}{about}", entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::codec::Encoding;

    fn message(subject: &str, payload: &'static [u8]) -> Message {
        Message {
            subject: subject.to_owned(),
            payload: payload.into(),
            encoding: Encoding::Json,
            accept: Encoding::Json,
            reply: None,
            nobody: false,
            refused: false,
        }
    }

    fn plain(message: &Message) -> String {
        anstream::adapter::strip_str(&line(message, Stamp(0), false)).to_string()
    }

    #[test]
    fn a_request_is_said_with_who_asks_it() {
        let said = plain(&message("lh.work.list.owner", b"{\"limit\":3}"));
        assert!(said.contains("client owner asks work.list {\"limit\":3}\n"), "{said}");
    }

    #[test]
    fn a_message_nobody_knows_is_shown_by_its_subject() {
        let said = plain(&message("some.thing", b"{}"));
        assert!(said.contains(" some.thing {}\n"), "{said}");
    }

    #[test]
    fn a_program_gets_one_object_a_message() {
        let said = line_json(&message("lh.work.list.owner", b"{}"), Stamp(0));
        let value: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(value["message"], "work.list");
        assert_eq!(value["body"], json!({}));
    }
}
