//! Finds the house's bus: by `--url` and `--creds`, else by what lies in the house's folder.

use crate::{
    app::App,
    failure::{Failure, exit},
};
use anyhow::Context;
use bus::{Bus, server::Paths};
use std::path::PathBuf;

/// How to get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    /// The bus's address.
    pub(crate) url: String,
    /// The file with the identity; a bus without any needs none.
    pub(crate) creds: Option<PathBuf>,
}

/// Says how to get in, without knocking.
pub(crate) fn door(app: &App) -> anyhow::Result<Door> {
    let settings = app.settings();
    // Looking into a folder must not make it.
    let paths = if app.dir.is_dir() { Some(Paths::open(&app.dir)?) } else { None };
    let kept = match &paths {
        Some(paths) => paths.door()?,
        None => None,
    };
    let own_creds = paths.as_ref().map(Paths::creds).filter(|path| path.is_file());
    let creds = settings
        .creds
        .clone()
        .or_else(|| {
            let kept = kept.as_ref().map(|door| door.creds.clone());
            kept.filter(|path| !path.as_os_str().is_empty())
        })
        .or(own_creds);
    if let Some(url) = &settings.url {
        return Ok(Door { url: url.clone(), creds });
    }
    if let Some(door) = kept {
        return Ok(Door { url: door.url, creds });
    }
    if let Some(paths) = paths
        && let Some(port) = paths.kept_port()?
    {
        return Ok(Door { url: format!("nats://127.0.0.1:{port}"), creds });
    }
    Err(Failure::new(exit::NO_BUS, format!("there is no house in `{}`", app.dir.display()))
        .hint("`longhouse up` raises one; `--dir FOLDER` or `--url ADDRESS` names another")
        .into())
}

/// Connects as a client.
pub(crate) async fn connect(app: &App) -> anyhow::Result<Bus> {
    knock(app, format!("longhouse client (process {})", std::process::id())).await
}

/// Connects as a part of the house.
pub(crate) async fn part(app: &App, part: &str) -> anyhow::Result<Bus> {
    knock(app, format!("longhouse {part} (process {})", std::process::id())).await
}

async fn knock(app: &App, name: String) -> anyhow::Result<Bus> {
    let door = door(app)?;
    if let Some(creds) = &door.creds
        && !creds.is_file()
    {
        return Err(Failure::new(
            exit::USAGE,
            format!("there are no credentials in `{}`", creds.display()),
        )
        .hint("name the file with `--creds FILE`")
        .into());
    }
    let settings = bus::Settings {
        url: door.url,
        creds: door.creds,
        name,
        caller: app.settings().caller.clone(),
        inbox_prefix: None,
    };
    Bus::connect(settings).await.context("could not reach the house")
}
