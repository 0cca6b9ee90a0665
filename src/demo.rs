//! `longhouse demo`: a house of its own audits the source of every crate of this build.
//!
//! The house is raised as processes of this program, in a temporary folder; the audit itself is
//! done by a client like any other, over the public wire.

mod audit;
mod items;
mod raise;

use crate::{app::App, failure::exit, report::Report, run::signals::Signals, terminal};
use raise::Raised;
use std::path::PathBuf;

/// See it work: a house of its own audits the source of every crate of this build
///
/// Raises a bus, a manager, a scheduler and two nodes in a temporary folder, and counts lines,
/// `unsafe` blocks and the largest files of each crate with ordinary tools (sh, find, awk, sort).
/// Everything is gone afterwards, unless `--keep` is given.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Audit each folder in this one, in the place of the crates of this build
    #[arg(value_hint = clap::ValueHint::DirPath)]
    folder: Option<PathBuf>,
    /// Leave the house up, and say how to talk to it
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let mut signals = Signals::listen()?;
        let began = bus::clock::at();
        let items = match &self.folder {
            Some(folder) => items::below(folder)?,
            None => items::of_this_build(&app.environment).await?,
        };
        let mut raised = Raised::new(app)?;
        let outcome = tokio::select! {
            outcome = show(&mut raised, &items) => outcome,
            _ = signals.next() => {
                terminal::say("ending the demo's house…");
                raised.end().await;
                return Ok(Report::nothing().with_code(exit::CANCELLED));
            }
        };
        let audited = match outcome {
            Ok(audited) => audited,
            Err(error) => {
                let kept = raised.end_and_keep().await;
                let hint = format!("logs of the demo's house are kept in {}", kept.display());
                let known = crate::failure::Failure::of(&error);
                return Err(crate::failure::Failure { hint: Some(hint), ..known }.into());
            }
        };
        let took_ms = bus::clock::at().since(began);
        let report = Report::pair(audited.told(took_ms), &audited.as_json(took_ms));
        let code = audited.code();
        if self.keep {
            let how = raised.keep();
            terminal::print(&report.render(app.json, terminal::stdout_is_terminal()))?;
            terminal::note(&how);
            return Ok(Report::nothing().with_code(code));
        }
        raised.end().await;
        Ok(report.with_code(code))
    }
}

async fn show(raised: &mut Raised, items: &[PathBuf]) -> anyhow::Result<audit::Audited> {
    raised.raise().await?;
    let house = raised.app.house().await?;
    audit::audit(&house, items, &raised.shared).await
}
