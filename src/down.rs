//! `longhouse down`: ends what this folder runs on this machine.

use crate::{app::App, report::Report};

/// End everything this folder runs on this machine, when its jobs have ended
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    /// End the jobs, too
    #[arg(long, conflicts_with = "detach")]
    now: bool,
    /// Leave the jobs to their keeper, for the next start
    #[arg(long)]
    detach: bool,
}

impl Down {
    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`down` is not assembled ({}, {})", self.now, self.detach)
    }
}
