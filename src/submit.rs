//! `longhouse submit`: a work that is described in a file.

use crate::{
    app::App, outcome::ended_code, report::Report, send, show::Shown, spec_file, terminal,
};
use bus::clock;
use std::time::Duration;

/// How long a submit is tried when nobody answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who waits longer than this for an open work is told for what.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// Submit a work that is described in a file
///
/// The same shape as on the wire (`longhouse schema work.submit`), in TOML or JSON. What is too
/// large for one message is sent in parts.
#[derive(Debug, clap::Args)]
pub(crate) struct Submit {
    /// A .toml or .json file; - reads standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: String,
    /// Wait until it has ended; ends with its exit code
    #[arg(short, long)]
    wait: bool,
}

impl Submit {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let mut submit = spec_file::read(&self.file)?;
        submit.pool.get_or_insert_with(|| app.settings().pool.clone());
        let is_open = submit.open;
        let house = app.house().await?;
        let submitted = send::submit(&house, submit, Some(PATIENCE)).await?;
        if !self.wait {
            return Ok(Report::pair(submitted.work, &submitted));
        }
        let work = submitted.work.to_string();
        let summary = {
            let mut waiting = std::pin::pin!(house.wait(&work));
            match tokio::time::timeout(TELL_AFTER, &mut waiting).await {
                Ok(summary) => summary?,
                Err(_) => {
                    if is_open {
                        terminal::say(&format!(
                            "{work} is open: it waits for more, and ends only after `close` \
                             (`longhouse schema work.close`)"
                        ));
                    }
                    waiting.await?
                }
            }
        };
        let code = ended_code(&house, &summary).await?;
        let shown = Shown { summary: &summary, now: clock::wall() };
        Ok(Report::pair(shown, &summary).with_code(code))
    }
}
