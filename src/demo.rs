//! `longhouse demo`.

use crate::{app::App, report::Report};

/// To come
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`demo` is not assembled")
    }
}
