//! `longhouse logs`.

use crate::{app::App, report::Report};

/// To come
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {}

impl Logs {
    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`logs` is not assembled")
    }
}
