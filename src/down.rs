//! `longhouse down`: ends what this folder runs on this machine.

use crate::{
    app::App,
    report::Report,
    running::{self, How, LAYERS},
    terminal,
};
use anyhow::Context;

/// End everything this folder runs on this machine, when its jobs have ended
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    /// End the jobs, too
    #[arg(long, conflicts_with = "detach")]
    now: bool,
    /// Leave the jobs to their keeper, for the next start
    #[arg(long)]
    detach: bool,
}

impl Down {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let how = match (self.now, self.detach) {
            (true, _) => How::Now,
            (_, true) => How::Detach,
            _ => How::Wait,
        };
        let found = running::found(&app.dir);
        for layer in LAYERS {
            for note in &found {
                running::end_in(note, layer, how, &terminal::say).await?;
            }
        }
        let left = match how {
            How::Detach => Vec::new(),
            _ => {
                let (dir, now) = (app.dir.clone(), how == How::Now);
                let end = move || workers::end_keepers(&dir, now, &terminal::say);
                tokio::task::spawn_blocking(end).await?.context("could not end a keeper")?
            }
        };
        let mut ended: Vec<String> = found.into_iter().map(|note| note.parts).collect();
        ended.extend(left.into_iter().map(|name| format!("keeper of {name}")));
        Ok(Report::text(match ended.as_slice() {
            [] => format!("nothing of `{}` runs on this machine", app.dir.display()),
            ended => format!("ended: {}", ended.join("; ")),
        }))
    }
}
