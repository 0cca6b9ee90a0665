//! What every command is given: the house's folder, the settings, the environment.

use crate::{
    client::House,
    config::{Config, Environment, Settings},
    connect,
};
use std::path::PathBuf;

/// Everything around a command.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// The house's folder, absolute; it need not be there.
    pub(crate) dir: PathBuf,
    /// The settings, and where each came from.
    pub(crate) config: Config,
    /// The environment as it was at the start.
    pub(crate) environment: Environment,
    /// Whether a program reads our output.
    pub(crate) json: bool,
    /// How often `-v` was said.
    pub(crate) verbose: u8,
}

impl App {
    pub(crate) fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// Connects to the house's bus as a client.
    pub(crate) async fn house(&self) -> anyhow::Result<House> {
        let bus = connect::connect(self).await?;
        Ok(House::new(bus, self.settings().pool.clone()))
    }
}
