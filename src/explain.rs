//! `longhouse explain`: in a sentence, why it is as it is.

use crate::{app::App, client::House, failure::Failure, parse::Place, report::Report};
use schemas::{
    error::code,
    request::{Explain as Request, Explained, Nodes, NodesReply},
    token::NodeName,
};
use std::fmt;

/// Say in a sentence why a work waits, runs where it runs or failed, or how a node stands
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// A work (or WORK/task), or a node
    #[arg(value_name = "WORK|NODE", default_value = "@last", add = crate::completion::works())]
    what: Place,
    /// It is a node, also where a work has that name
    #[arg(long)]
    node: bool,
}

impl Explain {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let request = match self.node {
            true => Request { node: Some(NodeName::new(&self.what.work)?), ..Request::default() },
            false => meant(&house, &self.what).await?,
        };
        let explained: Explained = house.sched("explain", &request).await?;
        Ok(Report::pair(Sentences(&explained), &explained))
    }
}

/// A work if there is one of that name, else a node.
async fn meant(house: &House, what: &Place) -> anyhow::Result<Request> {
    let unknown = match house.summary(&what.work).await {
        Ok(summary) => {
            let (work, task) = (Some(summary.work), what.task.clone());
            return Ok(Request { work, task, node: None });
        }
        Err(error) => error,
    };
    let is_unknown = matches!(&unknown, bus::Error::Refused(r) if &*r.code == code::UNKNOWN_WORK);
    if !is_unknown {
        return Err(unknown.into());
    }
    if let Ok(node) = NodeName::new(&what.work) {
        let nodes: NodesReply = house.sched("nodes", &Nodes::default()).await?;
        if nodes.nodes.iter().any(|view| view.node == node) {
            return Ok(Request { node: Some(node), ..Request::default() });
        }
    }
    let mut failure = Failure::of(&unknown.into());
    failure.message = format!("neither a work nor a node is called `{}`", what.work);
    if failure.hint.as_ref().is_some_and(|hint| hint.contains("`longhouse ls`")) {
        failure = failure.hint("`longhouse ls` shows the works, `longhouse nodes` the nodes");
    }
    Err(failure.into())
}

struct Sentences<'a>(&'a Explained);

impl fmt::Display for Sentences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.why)?;
        self.0.more.iter().try_for_each(|sentence| writeln!(f, "- {sentence}"))
    }
}
