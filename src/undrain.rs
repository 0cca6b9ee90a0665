//! `longhouse undrain`: a drained node takes jobs again.

use crate::{app::App, drain::change, report::Report};
use schemas::token::NodeName;

/// Let a drained node take jobs again
#[derive(Debug, clap::Args)]
pub(crate) struct Undrain {
    /// Which node
    #[arg(value_parser = crate::parse::node, add = crate::completion::nodes())]
    node: NodeName,
}

impl Undrain {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        change(&app.house().await?, "undrain", self.node).await
    }
}
