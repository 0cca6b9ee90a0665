//! `longhouse drain`: a node finishes what it has and takes nothing new.

use crate::{app::App, client::House, report::Report};
use schemas::{
    request::{Done, NodeChange},
    token::NodeName,
};

/// Let a node finish what it has and take nothing new
#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    /// Which node
    #[arg(value_parser = crate::parse::node, add = crate::completion::nodes())]
    node: NodeName,
}

impl Drain {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        change(&app.house().await?, "drain", self.node).await
    }
}

/// Asks for `drain` or `undrain`.
pub(crate) async fn change(house: &House, verb: &str, node: NodeName) -> anyhow::Result<Report> {
    let done: Done = house.sched(verb, &NodeChange { node }).await?;
    Ok(Report::pair(&done.message, &done))
}
