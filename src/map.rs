//! `longhouse map`.

use crate::{app::App, report::Report};

/// To come
#[derive(Debug, clap::Args)]
pub(crate) struct Map {}

impl Map {
    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`map` is not assembled")
    }
}
