//! `longhouse up`: raises the house on this machine.

use crate::{app::App, config::Flag, report::Report};
use figment::value::Value;
use std::ffi::OsString;

/// Raise the house on this machine: bus, manager, scheduler and a node
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Only this part, into the house of the same folder; may be given more than once
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// The bus's port; 0 for any free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Also keep the way in as a context of the `nats` command
    #[arg(long)]
    save_context: bool,
}

/// A part of a house.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    Bus,
    Manager,
    Scheduler,
    Worker,
}

impl Up {
    pub(crate) fn log_name(&self) -> String {
        "up".to_owned()
    }

    pub(crate) fn flags(&self) -> Vec<Flag> {
        self.port.map(|port| ("bus.port", Value::from(port))).into_iter().collect()
    }

    pub(crate) async fn run(self, _app: &App) -> anyhow::Result<Report> {
        anyhow::bail!("`up` is not assembled ({:?}, {})", self.only, self.save_context)
    }
}

/// The small process between a house and its bus's server
#[derive(Debug, clap::Args)]
pub(crate) struct BusShim {
    /// For `bus::server` alone
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl BusShim {
    pub(crate) fn run(self) -> std::process::ExitCode {
        let code = bus::server::shim_main(&self.arguments);
        u8::try_from(code).unwrap_or(u8::MAX).into()
    }
}
