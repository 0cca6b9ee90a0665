//! `longhouse wait`: until a work has ended, whatever becomes of managers and bus meanwhile.

use crate::{app::App, outcome::ended_code, report::Report, show::Shown};
use bus::clock;

/// Wait until a work has ended; ends with its exit code
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Which work: its id, the beginning of it, its name, or @last
    #[arg(default_value = "@last", add = crate::completion::works())]
    work: String,
}

impl Wait {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        // Resolved once: `@last` may mean another work when it is asked again.
        let work = house.summary(&self.work).await?.work.to_string();
        let summary = house.wait(&work).await?;
        let code = ended_code(&house, &summary).await?;
        let shown = Shown { summary: &summary, now: clock::wall() };
        Ok(Report::pair(shown, &summary).with_code(code))
    }
}
