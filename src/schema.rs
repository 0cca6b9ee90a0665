//! `longhouse schema`: the messages that may be said.

use crate::{failure::Failure, report::Report, style};
use comfy_table::Cell;
use schemas::catalog::{self, CATALOG};
use serde_json::{Value, json};

/// Show the messages that may be said, or the JSON Schema of one
#[derive(Debug, clap::Args)]
pub(crate) struct Schema {
    /// Which message, by its name (work.submit, work.submit.reply), its type or its subject
    message: Option<String>,
    /// An example instead of the schema
    #[arg(long, requires = "message")]
    example: bool,
}

impl Schema {
    pub(crate) fn run(self) -> anyhow::Result<Report> {
        let Some(name) = &self.message else { return Ok(all()) };
        let value = if self.example { example(name) } else { catalog::schema(name) };
        let value = value.ok_or_else(|| unknown(name))?;
        Ok(Report::pair(serde_json::to_string_pretty(&value)?, &value))
    }
}

fn unknown(name: &str) -> Failure {
    let failure = Failure::usage(format!("there is no message `{name}`"));
    match catalog::nearest_schema_name(name) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint("`longhouse schema` lists all of them"),
    }
}

fn example(name: &str) -> Option<Value> {
    match name.strip_suffix(".reply") {
        Some(name) => catalog::find(name)?.answer_example(),
        None => catalog::find(name).or_else(|| catalog::of_subject(name))?.example(),
    }
}

fn all() -> Report {
    let mut table = style::table(&["MESSAGE", "SUBJECT", "WHO", "WHAT"]);
    let mut list = Vec::new();
    for entry in CATALOG {
        table.add_row(vec![
            Cell::new(entry.name),
            Cell::new(entry.subject),
            Cell::new(entry.direction()),
            Cell::new(entry.what),
        ]);
        list.push(json!({
            "message": entry.name,
            "subject": entry.subject,
            "kind": entry.kind.as_str(),
            "who": entry.direction(),
            "what": entry.what,
        }));
    }
    Report::pair(style::lines(&table), &list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_found_by_its_name_and_a_mistyped_one_is_corrected() {
        let show = |name: &str| Schema { message: Some(name.to_owned()), example: false }.run();
        assert!(show("work.submit").unwrap().render(true, false).contains("\"argv\""));
        let failure = Failure::of(&show("work.sumbit").unwrap_err());
        assert_eq!(failure.hint.as_deref(), Some("did you mean `work.submit`?"));
        assert!(all().render(true, false).contains("lh.work.submit"));
    }
}
