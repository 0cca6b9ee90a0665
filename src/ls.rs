//! `longhouse ls`: works, newest first.

use crate::{app::App, report::Report, style};
use bus::clock;
use comfy_table::Cell;
use schemas::{
    outcome::{IndexState, Summary, WorkState},
    request::{List, Works},
    time::Stamp,
};
use std::fmt;

/// List works, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// All of them, not only the newest
    #[arg(short, long)]
    all: bool,
    /// Only those in one of these states: waiting, running, finished, failed, cancelled, refused
    #[arg(long, value_name = "STATES", value_delimiter = ',', value_parser = state)]
    state: Vec<WorkState>,
    /// Only those whose name contains this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// At most so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, conflicts_with = "all")]
    limit: u32,
    /// Go on where an earlier page ended
    #[arg(long, value_name = "NEXT")]
    from: Option<String>,
}

fn state(text: &str) -> Result<WorkState, String> {
    let all = [
        WorkState::Waiting,
        WorkState::Running,
        WorkState::Finished,
        WorkState::Failed,
        WorkState::Cancelled,
        WorkState::Refused,
    ];
    all.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|state| state.as_str()).collect();
        format!("there is no state `{text}`; there are {}", names.join(", "))
    })
}

impl Ls {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let mut request = List {
            states: self.state,
            name: self.name,
            limit: (!self.all).then_some(self.limit),
            from: self.from,
        };
        let mut works: Works = house.work("list", &request).await?;
        while self.all
            && let Some(next) = works.next.take()
        {
            request.from = Some(next);
            let page: Works = house.work("list", &request).await?;
            works.works.extend(page.works);
            works.next = page.next;
        }
        Ok(Report::pair(Listed { works: &works, now: clock::wall() }, &works))
    }
}

struct Listed<'a> {
    works: &'a Works,
    now: Stamp,
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.works.works.is_empty() {
            return f.write_str("no works\n");
        }
        let mut table = style::table(&["WORK", "NAME", "STATE", "DONE", "SUBMITTED", "TOOK"]);
        for work in &self.works.works {
            table.add_row(vec![
                Cell::new(style::short(work.work)),
                Cell::new(if work.name.is_empty() { "–" } else { &work.name }),
                style::work_state(work.state),
                style::number(done(work)),
                Cell::new(style::moment(work.submitted_at, self.now)),
                style::number(took(work, self.now)),
            ]);
        }
        f.write_str(&style::lines(&table))?;
        if let Some(next) = &self.works.next {
            writeln!(f, "more: `longhouse ls --from {next}`, or `--all`")?;
        }
        Ok(())
    }
}

/// `98/100`, or `97+1/100` with one that failed.
fn done(work: &Summary) -> String {
    let sum = |of: fn(&schemas::outcome::TaskSummary) -> u64| work.tasks.iter().map(of).sum();
    let (total, finished): (u64, u64) = (sum(|t| t.total), sum(|t| t.finished));
    let bad: u64 = sum(|t| t.failed + t.cancelled + t.skipped);
    if bad == 0 { format!("{finished}/{total}") } else { format!("{finished}+{bad}/{total}") }
}

/// How long it took, or has been taking; empty for what never was.
pub(crate) fn took(work: &Summary, now: Stamp) -> String {
    let nothing_began = work.state == WorkState::Refused
        || work.tasks.iter().all(|task| task.state == IndexState::Waiting);
    if nothing_began && !work.state.is_ended() {
        return String::new();
    }
    let until = work.ended_at.unwrap_or(now);
    style::span(until.0.saturating_sub(work.submitted_at.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn works() -> Works {
        serde_json::from_str(
            r#"{"works": [
                {"work": "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f", "name": "thumbs",
                 "owner": "owner", "state": "failed", "submitted_at": "2026-11-23T03:42:03.000Z",
                 "ended_at": "2026-11-23T03:43:08.000Z",
                 "tasks": [{"task": "main", "state": "failed", "total": 100, "waiting": 0,
                    "ready": 0, "running": 0, "finished": 98, "failed": 2, "cancelled": 0,
                    "skipped": 0, "lost": 0, "first_failures": []}]}],
              "next": "abc"}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_list_shows_what_is_done_and_what_went_wrong() {
        let works = works();
        let now = works.works[0].submitted_at;
        let text = Listed { works: &works, now }.to_string();
        let plain = anstream::adapter::strip_str(&text).to_string();
        let lines: Vec<&str> = plain.lines().collect();
        assert!(lines[0].starts_with("WORK"), "{plain}");
        for part in ["0198f0c2-7b5e-7cc3", "thumbs", "failed", "98+2/100", "1 m 5 s"] {
            assert!(lines[1].contains(part), "{part} in {plain}");
        }
        assert!(lines[2].contains("--from abc"), "{plain}");
    }

    #[test]
    fn no_works_is_said_in_words() {
        let works = Works { works: vec![], next: None };
        assert_eq!(Listed { works: &works, now: Stamp(0) }.to_string(), "no works\n");
    }

    #[test]
    fn a_state_that_is_none_is_answered_with_those_there_are() {
        assert_eq!(state("failed"), Ok(WorkState::Failed));
        assert!(state("broken").unwrap_err().contains("finished"));
    }
}
