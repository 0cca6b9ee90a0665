//! `longhouse retry`: a new round for what did not finish.

use crate::{app::App, cancel::change, outcome::ended_code, report::Report, show::Shown};
use bus::clock;
use std::time::Duration;

/// Try again what failed of a work; what finished stays as it is
#[derive(Debug, clap::Args)]
pub(crate) struct Retry {
    /// Which work: its id, the beginning of it, its name, or @last
    #[arg(add = crate::completion::works())]
    work: String,
    /// Wait until it has ended again
    #[arg(long)]
    wait: bool,
}

impl Retry {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let patience = Some(Duration::from_secs(10));
        let mut summary = change(&house, "retry", self.work, patience).await?;
        let mut code = 0;
        if self.wait {
            summary = house.wait(&summary.work.to_string()).await?;
            code = ended_code(&house, &summary).await?;
        }
        let shown = Shown { summary: &summary, now: clock::wall() };
        Ok(Report::pair(shown, &summary).with_code(code))
    }
}
