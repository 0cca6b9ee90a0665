//! `longhouse results`: how the jobs of a work ended.

use crate::{app::App, client::House, outcome::said_why, report::Report, style, terminal};
use comfy_table::Cell;
use schemas::{
    outcome::{IndexState, Outcome},
    request::{Outcomes, Results as Request},
    token::TaskName,
};

/// Show how the jobs of a work ended
#[derive(Debug, clap::Args)]
pub(crate) struct Results {
    /// Which work: its id, the beginning of it, its name, or @last
    #[arg(default_value = "@last", add = crate::completion::works())]
    work: String,
    /// Only those that failed
    #[arg(long)]
    failed: bool,
    /// Only this task
    #[arg(long, value_name = "TASK")]
    task: Option<TaskName>,
    /// As comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

impl Results {
    /// Pages are printed as they come: a work may have millions of jobs.
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let work = house.summary(&self.work).await?.work.to_string();
        let mut request = Request {
            work,
            task: self.task,
            from: None,
            limit: None,
            only: self.failed.then_some(IndexState::Failed),
        };
        let format = match (app.json, self.csv) {
            (true, _) => Format::Json,
            (_, true) => Format::Csv,
            _ => Format::Table,
        };
        terminal::print(format.head())?;
        let mut first = true;
        loop {
            let page = page(&house, &request).await?;
            terminal::print(&format.page(&page.items, first))?;
            first &= page.items.is_empty();
            request.from = page.next;
            if request.from.is_none() {
                break;
            }
        }
        terminal::print(format.foot(first))?;
        Ok(Report::nothing())
    }
}

/// One page of outcomes.
pub(crate) async fn page(house: &House, request: &Request) -> Result<Outcomes, bus::Error> {
    house.work("results", request).await
}

#[derive(Clone, Copy)]
enum Format {
    Table,
    Csv,
    Json,
}

const HEADS: [&str; 10] = [
    "task",
    "index",
    "state",
    "node",
    "attempt",
    "exit_code",
    "signal",
    "ran_s",
    "memory_peak_mib",
    "why",
];

impl Format {
    fn head(self) -> &'static str {
        match self {
            Format::Table => "",
            Format::Csv => {
                "task,index,state,node,attempt,exit_code,signal,ran_s,cpu_s,memory_peak_mib,why,stdout\n"
            }
            Format::Json => "{\"items\":[",
        }
    }

    fn foot(self, empty: bool) -> &'static str {
        match self {
            Format::Table if empty => "no results yet\n",
            Format::Table | Format::Csv => "",
            Format::Json => "],\"next\":null}\n",
        }
    }

    fn page(self, items: &[Outcome], first: bool) -> String {
        match self {
            Format::Table if items.is_empty() => String::new(),
            Format::Table => table(items, first),
            Format::Csv => items.iter().map(csv).collect(),
            Format::Json => json(items, first),
        }
    }
}

fn json(items: &[Outcome], first: bool) -> String {
    let mut out = String::new();
    for (n, outcome) in items.iter().enumerate() {
        if !(first && n == 0) {
            out.push(',');
        }
        out.push_str(&serde_json::to_string(outcome).expect("outcomes have string keys only"));
    }
    out
}

fn table(items: &[Outcome], first: bool) -> String {
    let heads = HEADS.map(|head| head.to_uppercase().replace('_', " "));
    let mut table = style::table(&heads.each_ref().map(String::as_str));
    for o in items {
        table.add_row(vec![
            Cell::new(&o.task),
            style::number(o.index),
            style::index_state(o.state),
            Cell::new(o.node.as_ref().map_or("–", |node| node.as_str())),
            style::number(o.attempt),
            style::number(o.exit_code.map(|code| code.to_string()).unwrap_or_default()),
            style::number(o.signal.map(|signal| signal.to_string()).unwrap_or_default()),
            style::number(o.ran_s.ms as f64 / 1000.0),
            style::number(o.memory_peak_mib),
            Cell::new(said_why(o.why.as_deref(), None, None).unwrap_or_default()),
        ]);
    }
    let text = style::lines(&table);
    match text.split_once('\n') {
        Some((_, rows)) if !first => rows.to_owned(),
        _ => text,
    }
}

fn csv(o: &Outcome) -> String {
    let number = |number: Option<i32>| number.map(|n| n.to_string()).unwrap_or_default();
    let fields = [
        o.task.to_string(),
        o.index.to_string(),
        o.state.to_string(),
        o.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        o.attempt.to_string(),
        number(o.exit_code),
        number(o.signal),
        (o.ran_s.ms as f64 / 1000.0).to_string(),
        (o.cpu_s.ms as f64 / 1000.0).to_string(),
        o.memory_peak_mib.to_string(),
        o.why.clone().unwrap_or_default(),
        o.stdout.to_text().into_owned(),
    ];
    let mut line = fields.map(|field| quoted(&field)).join(",");
    line.push('\n');
    line
}

/// A field as RFC 4180 wants it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{blob::Blob, outcome::Ending};

    fn outcome(index: u32, stdout: &str) -> Outcome {
        let ending = Ending {
            stdout: Blob::from(stdout.to_owned()),
            exit_code: Some(0),
            ..Ending::new(IndexState::Finished)
        };
        Outcome::new(TaskName::main(), index, 1, ending)
    }

    #[test]
    fn fields_with_commas_quotes_or_lines_are_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"hi\"\n"), "\"say \"\"hi\"\"\n\"");
        assert_eq!(csv(&outcome(7, "a,b\n")), "main,7,finished,,1,0,,0,0,0,,\"a,b\n\"\n");
    }

    #[test]
    fn pages_join_to_one_json_document() {
        let format = Format::Json;
        let (one, two) = ([outcome(0, "x")], [outcome(1, "y")]);
        let text = [
            format.head(),
            &format.page(&one, true),
            &format.page(&[], false),
            &format.page(&two, false),
            format.foot(false),
        ]
        .concat();
        let read: Outcomes = serde_json::from_str(&text).unwrap();
        assert_eq!(read.items.len(), 2);
        assert_eq!(read.items[1], two[0]);
    }

    #[test]
    fn only_the_first_page_of_a_table_has_a_head() {
        let plain = |text: String| anstream::adapter::strip_str(&text).to_string();
        assert!(plain(table(&[outcome(0, "")], true)).starts_with("TASK"));
        assert!(plain(table(&[outcome(0, "")], false)).starts_with("main"));
    }
}
