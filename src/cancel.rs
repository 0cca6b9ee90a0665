//! `longhouse cancel`: ends a work before its time.

use crate::{app::App, client::House, report::Report, show::Shown};
use bus::clock;
use schemas::{
    id::RequestId,
    outcome::Summary,
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
        Ok(Report::pair(Shown { summary: &summary, now: clock::wall() }, &summary))
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
