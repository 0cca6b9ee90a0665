//! `longhouse show`: how a work stands.

use crate::{
    app::App,
    ls::took,
    outcome::{said_why, single_outcome},
    report::Report,
    style,
};
use bus::clock;
use comfy_table::Cell;
use owo_colors::OwoColorize;
use schemas::{
    outcome::{Outcome, Summary},
    request::Get,
    time::Stamp,
};
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
        if let Some(outcome) = single_outcome(&house, &summary).await? {
            text.push_str(&single(&outcome));
        }
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

/// How a single job ended, in a line.
fn single(o: &Outcome) -> String {
    let Some(node) = &o.node else { return String::new() };
    let mut out = format!("\non {node}");
    if let Some(code) = o.exit_code {
        out.push_str(&format!(", exit code {code}"));
    }
    if let Some(signal) = o.signal {
        out.push_str(&format!(", signal {signal}"));
    }
    if o.ended_at.is_some() {
        let (ran, cpu) = (style::span(o.ran_s.ms), style::span(o.cpu_s.ms));
        out.push_str(&format!(", ran {ran}, cpu {cpu}, memory {} MiB", o.memory_peak_mib));
    }
    out.push('\n');
    out
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
    fn a_single_job_shows_where_it_ran_and_what_it_took() {
        use schemas::{
            outcome::{Ending, IndexState},
            time::{Seconds, Stamp},
            token::{NodeName, TaskName},
        };
        let ending = Ending {
            node: Some(NodeName::new("m4").unwrap()),
            exit_code: Some(3),
            ended_at: Some(Stamp(1)),
            ran_s: Seconds::from_ms(1200),
            cpu_s: Seconds::from_ms(800),
            memory_peak_mib: 12,
            ..Ending::new(IndexState::Failed)
        };
        let text = single(&Outcome::new(TaskName::main(), 0, 1, ending));
        assert_eq!(text, "\non m4, exit code 3, ran 1.2 s, cpu 800 ms, memory 12 MiB\n");
    }

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
