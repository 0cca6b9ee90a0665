//! `longhouse cancel`: ends a work before its time.

use crate::{app::App, client::House, report::Report, style};
use schemas::{
    id::RequestId,
    outcome::{Summary, WorkState},
    request::{Change, WorkRef},
};
use std::time::Duration;

/// How long a change is asked for again when nobody answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Cancel a work: what waits never starts, what runs is ended
#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    /// Which work: its id, the beginning of it, its name, or @last
    #[arg(add = crate::completion::works())]
    work: String,
}

impl Cancel {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let summary = change(&house, "cancel", self.work, Some(PATIENCE)).await?;
        Ok(Report::pair(goes_on(&summary), &summary))
    }
}

/// What is going on after a work was cancelled.
fn goes_on(summary: &Summary) -> String {
    if summary.state == WorkState::Cancelled {
        return "cancelled".to_owned();
    }
    match summary.tasks.iter().map(|task| task.running).sum() {
        0 => "cancelling".to_owned(),
        running => format!(
            "cancelling: {} {} being ended (TERM, then KILL after a grace of 5 s)",
            style::count(running, "job"),
            if running == 1 { "is" } else { "are" },
        ),
    }
}

/// Asks for `cancel` or `retry`; said again, it is the same request and done once.
pub(crate) async fn change(
    house: &House,
    verb: &str,
    work: WorkRef,
    patience: Option<Duration>,
) -> Result<Summary, bus::Error> {
    let request = Some(RequestId(uuid::Uuid::new_v4()));
    house.patiently(verb, &Change { work, round: None, request }, patience).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(state: &str, running: u64) -> Summary {
        serde_json::from_value(serde_json::json!({
            "work": "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f", "name": "x", "owner": "owner",
            "state": state, "submitted_at": "2026-11-23T03:42:03.000Z",
            "tasks": [{"task": "main", "state": "running", "total": 3, "waiting": 0, "ready": 0,
                "running": running, "finished": 0, "failed": 0, "cancelled": 0, "skipped": 0,
                "lost": 0, "first_failures": []}],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_going_on_is_said_and_not_only_a_state() {
        let said = |state, running| goes_on(&summary(state, running));
        let one = said("running", 1);
        assert_eq!(one, "cancelling: 1 job is being ended (TERM, then KILL after a grace of 5 s)");
        assert!(said("running", 2).starts_with("cancelling: 2 jobs are being ended"));
        assert_eq!(said("cancelled", 0), "cancelled");
        assert_eq!(said("running", 0), "cancelling");
    }
}
