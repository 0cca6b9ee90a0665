//! `longhouse worker`: lends this machine to a house that is up elsewhere.

use crate::{
    app::App,
    config::Flag,
    connect,
    failure::Failure,
    report::Report,
    running::{self, OnInterrupt, Parts},
    terminal, up,
};
use anyhow::Context;
use figment::value::Value;
use schemas::{
    time::Seconds,
    token::{NodeName, PoolName, SiteName},
};
use std::{ffi::OsString, time::Duration};

/// Lend this machine to a house; Ctrl-C leaves its jobs to the next worker
///
/// The house may be up in the same folder, or elsewhere (`--url`, `--creds`). A second node on one
/// machine lends all of it once more unless `--lend` says less.
#[derive(Debug, clap::Args)]
pub(crate) struct Worker {
    /// The node's name [default: the host's]
    #[arg(long)]
    name: Option<NodeName>,
    /// The LAN that it is in
    #[arg(long)]
    site: Option<SiteName>,
    /// The pool that it serves
    #[arg(long)]
    pool: Option<PoolName>,
    /// What it lends, such as cpus=6,memory=24GiB,gpus=1 [default: what it has]
    #[arg(long, value_name = "AMOUNTS")]
    lend: Option<String>,
}

impl Worker {
    pub(crate) fn log_name(&self) -> String {
        self.name.as_ref().map_or("worker".to_owned(), |name| format!("worker-{name}"))
    }

    pub(crate) fn flags(&self) -> Vec<Flag> {
        let mut out: Vec<Flag> = Vec::new();
        out.extend(self.name.as_ref().map(|n| ("worker.name", Value::from(n.as_str()))));
        out.extend(self.site.as_ref().map(|s| ("worker.site", Value::from(s.as_str()))));
        out.extend(self.pool.as_ref().map(|p| ("pool", Value::from(p.as_str()))));
        out.extend(self.lend.as_ref().map(|l| ("worker.lend", Value::from(l.as_str()))));
        out
    }

    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let agent = start(app).await?;
        let bus = connect::part(app, "worker").await?;
        up::node_ready(app, bus.clone(), &agent).await?;
        terminal::print(&format!("ready {} at {}\n", agent.node(), bus.url()))?;
        let parts = Parts { agent: Some(agent), bus: Some(bus), ..Parts::default() };
        running::until_ended(app, parts, OnInterrupt::Detach).await?;
        Ok(Report::nothing())
    }
}

/// Starts the node of this process.
pub(crate) async fn start(app: &App) -> anyhow::Result<workers::Agent> {
    let settings = app.settings();
    let node = &settings.worker;
    let bus = connect::part(app, "worker").await?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let mut told = workers::Settings::new(app.dir.clone(), host, program);
    told.name = node.name.clone();
    told.site = node.site.clone();
    told.pool = settings.pool.clone();
    if let Some(lend) = &node.lend {
        told.lend = lend.parse().map_err(|error: workers::LendError| {
            Failure::usage(format!("`lend` makes no sense: {error}"))
                .hint("for example `--lend cpus=6,memory=24GiB,gpus=1`")
        })?;
    }
    told.env = app.environment.for_keeper();
    let set = |to: &mut Duration, from: Option<Seconds>| {
        *to = from.map_or(*to, |from| Duration::from_millis(from.ms));
    };
    set(&mut told.beat, node.beat_s);
    set(&mut told.grace, node.grace_s);
    set(&mut told.lost_after, node.lost_after_s);
    set(&mut told.reader_after, node.reader_after_s);
    let agent = workers::start(bus, told).await.map_err(explained)?;
    if let Some(note) = agent.note() {
        terminal::say(note);
    }
    Ok(agent)
}

fn explained(error: workers::Error) -> anyhow::Error {
    let hint = match &error {
        workers::Error::Folder(bus::server::Error::Held { .. }) => {
            "another node of this machine has that name: choose one with `--name`"
        }
        workers::Error::Keeper { .. } => "the keeper's own log lies in that folder: `keeper.log`",
        _ => return anyhow::Error::new(error).context("could not start the node"),
    };
    Failure::new(crate::failure::exit::FAILED, format!("could not start the node: {error}"))
        .hint(hint)
        .into()
}

/// The small process that owns a node's jobs
#[derive(Debug, clap::Args)]
pub(crate) struct Keeper {
    /// For `workers` alone
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Keeper {
    pub(crate) fn run(self) -> std::process::ExitCode {
        let code = workers::keeper_main(&self.arguments);
        u8::try_from(code).unwrap_or(u8::MAX).into()
    }
}
