//! `longhouse worker`: lends this machine to a house that is up elsewhere.

use crate::{app::App, config::Flag, report::Report};
use figment::value::Value;
use schemas::token::{NodeName, PoolName, SiteName};
use std::ffi::OsString;

/// Lend this machine to a house; Ctrl-C leaves its jobs to the next worker
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

    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`worker` is not assembled")
    }
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
        crate::terminal::say(&format!("`keeper` is not assembled ({:?})", self.arguments));
        std::process::ExitCode::FAILURE
    }
}
