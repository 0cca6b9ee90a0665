//! `longhouse submit`.

use crate::{app::App, report::Report};

/// To come
#[derive(Debug, clap::Args)]
pub(crate) struct Submit {}

impl Submit {
    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`submit` is not assembled")
    }
}
