//! `longhouse show`: how a work stands.

use crate::{app::App, ls::took, outcome::said_why, report::Report, style};
use bus::clock;
use comfy_table::Cell;
use owo_colors::OwoColorize;
use schemas::{outcome::Summary, request::Get, time::Stamp};
use serde_json::Value;
use std::fmt;

/// Show how a work stands
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Which work: its id, the beginning of it, its name, or @last
    #[arg(default_value = "@last", add = crate::completion::works())]
    work: String,
    /// Also the work as it was accepted
    #[arg(long)]
    spec: bool,
}

impl Show {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let answer: Value = house.work("get", &Get { work: self.work, spec: self.spec }).await?;
        let summary: Summary = serde_json::from_value(answer.clone())?;
        let mut text = Shown { summary: &summary, now: clock::wall() }.to_string();
        if let Some(spec) = answer.get("spec") {
            text.push('\n');
            text.push_str(&serde_json::to_string_pretty(spec)?);
            text.push('\n');
        }
        Ok(Report::pair(text, &answer))
    }
}

/// A summary, as a person reads it.
pub(crate) struct Shown<'a> {
    pub(crate) summary: &'a Summary,
    pub(crate) now: Stamp,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { summary, now } = self;
        let name = if summary.name.is_empty() { "(no name)" } else { &summary.name };
        writeln!(f, "{} {}", name.bold(), summary.work.dimmed())?;
        write!(f, "{}", summary.state)?;
        if summary.open {
            f.write_str(", open")?;
        }
        if summary.round > 0 {
            write!(f, ", retried {}", style::count(summary.round.into(), "time"))?;
        }
        write!(f, ", submitted {}", style::moment(summary.submitted_at, *now))?;
        let took = took(summary, *now);
        if !took.is_empty() {
            let word = if summary.state.is_ended() { "took" } else { "for" };
            write!(f, ", {word} {took}")?;
        }
        f.write_str("\n")?;
        if let Some(why) = &summary.why {
            writeln!(f, "{why}")?;
        }
        if !summary.tasks.is_empty() {
            write!(f, "\n{}", tasks(summary))?;
        }
        for task in &summary.tasks {
            for failure in &task.first_failures {
                let node = failure.node.as_ref().map_or(String::new(), |n| format!(" on {n}"));
                let why = said_why(failure.why.as_deref(), failure.exit_code, failure.signal)
                    .unwrap_or_else(|| "failed".to_owned());
                writeln!(f, "{}/{}{node}: {why}", task.task, failure.index)?;
            }
        }
        Ok(())
    }
}

fn tasks(summary: &Summary) -> String {
    let heads = ["TASK", "STATE", "TOTAL", "WAITING", "READY", "RUNNING", "FINISHED", "FAILED"];
    let mut table = style::table(&heads);
    let others: u64 = summary.tasks.iter().map(|t| t.cancelled + t.skipped + t.lost).sum();
    if others > 0 {
        let all = heads.into_iter().chain(["CANCELLED", "SKIPPED", "LOST"]);
        table = style::table(&all.collect::<Vec<_>>());
    }
    for task in &summary.tasks {
        let mut row = vec![Cell::new(&task.task), style::index_state(task.state)];
        let mut counts =
            vec![task.total, task.waiting, task.ready, task.running, task.finished, task.failed];
        if others > 0 {
            counts.extend([task.cancelled, task.skipped, task.lost]);
        }
        row.extend(counts.into_iter().map(style::number));
        table.add_row(row);
    }
    style::lines(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_work_shows_its_first_failures() {
        let summary: Summary = serde_json::from_str(
            r#"{"work": "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f", "name": "thumbs",
                "owner": "owner", "state": "failed", "why": "1 of 3 jobs failed",
                "submitted_at": "2026-11-23T03:42:03.000Z",
                "ended_at": "2026-11-23T03:42:08.000Z",
                "tasks": [{"task": "main", "state": "failed", "total": 3, "waiting": 0,
                   "ready": 0, "running": 0, "finished": 2, "failed": 1, "cancelled": 0,
                   "skipped": 0, "lost": 0,
                   "first_failures": [{"index": 1, "node": "m4", "exit_code": 3}]}]}"#,
        )
        .unwrap();
        let text = Shown { summary: &summary, now: summary.submitted_at }.to_string();
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(plain.contains("1 of 3 jobs failed\n"), "{plain}");
        assert!(plain.contains("main/1 on m4: exit code 3\n"), "{plain}");
        assert!(plain.contains("took 5.0 s"), "{plain}");
        assert!(!plain.contains("SKIPPED"), "{plain}");
    }
}
