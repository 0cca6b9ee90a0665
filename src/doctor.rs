//! `longhouse doctor`.

use crate::{app::App, report::Report};

/// To come
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`doctor` is not assembled")
    }
}
