//! `longhouse env`: what other clients need to get in, as shell exports.

use crate::{app::App, connect, report::Report};
use bus::server::Paths;
use serde::Serialize;
use std::{fmt, path::PathBuf};

/// Print what other clients need to get in: `eval "$(longhouse env)"`
#[derive(Debug, clap::Args)]
pub(crate) struct Env {}

impl Env {
    pub(crate) fn run(self, app: &App) -> anyhow::Result<Report> {
        let door = connect::door(app)?;
        let context = match app.dir.is_dir() {
            true => Some(Paths::open(&app.dir)?.context()).filter(|path| path.is_file()),
            false => None,
        };
        Ok(Report::of(&Exports {
            nats_url: door.url,
            nats_creds: door.creds,
            nats_context: context,
            longhouse_dir: app.dir.clone(),
        }))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct Exports {
    nats_url: String,
    nats_creds: Option<PathBuf>,
    nats_context: Option<PathBuf>,
    longhouse_dir: PathBuf,
}

impl fmt::Display for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |path: &PathBuf| path.display().to_string();
        let pairs = [
            ("NATS_URL", Some(self.nats_url.clone())),
            ("NATS_CREDS", self.nats_creds.as_ref().map(path)),
            ("NATS_CONTEXT", self.nats_context.as_ref().map(path)),
            ("LONGHOUSE_DIR", Some(path(&self.longhouse_dir))),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                writeln!(f, "export {name}={}", quoted(&value))?;
            }
        }
        Ok(())
    }
}

/// As one word of a POSIX shell.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-:@%+=,".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_survive_spaces_and_quotes() {
        assert_eq!(quoted("/plain/path-1.2"), "/plain/path-1.2");
        assert_eq!(quoted("/my house"), "'/my house'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
    }

    #[test]
    fn what_is_not_there_is_not_exported() {
        let exports = Exports {
            nats_url: "nats://127.0.0.1:4222".into(),
            nats_creds: None,
            nats_context: None,
            longhouse_dir: "/my house".into(),
        };
        assert_eq!(
            exports.to_string(),
            "export NATS_URL=nats://127.0.0.1:4222\nexport LONGHOUSE_DIR='/my house'\n"
        );
        let json = serde_json::to_value(&exports).unwrap();
        assert_eq!(json["NATS_URL"], "nats://127.0.0.1:4222");
    }
}
