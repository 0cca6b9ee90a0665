//! Where a stranger sits: a terminal with foreign clients at hand, and nothing of ours but
//! `longhouse env`.

use super::install;
use crate::house::{House, LONGHOUSE, patiently};
use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};
use tempfile::TempDir;
use tokio::process::Command;

/// What every terminal begins with, as the recipes say.
pub(crate) const DOOR: &str = "eval \"$(longhouse env)\"";

/// A terminal beside a house.
pub(crate) struct Desk {
    house: PathBuf,
    folder: TempDir,
}

impl Desk {
    /// A terminal with `longhouse` in its PATH and nothing else yet.
    pub(crate) fn beside(house: &House) -> Self {
        let folder = tempfile::Builder::new().prefix("a desk ").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        symlink(LONGHOUSE, folder.path().join("bin/longhouse")).unwrap();
        Self { house: house.dir.clone(), folder }
    }

    /// With the `nats` command, which must be there.
    pub(crate) fn with_nats(self, nats: &Path) -> Self {
        symlink(nats, self.folder.path().join("bin/nats")).unwrap();
        self
    }

    /// With the Node client, where Node looks for it.
    pub(crate) fn with_node(self) -> Self {
        let modules = install::node().join("node_modules");
        symlink(modules, self.folder.path().join("node_modules")).unwrap();
        self
    }

    /// A shell that has done nothing yet.
    fn shell(&self, script: &str) -> Command {
        let mut path = std::ffi::OsString::from(self.folder.path().join("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(self.folder.path());
        // Only what belongs to other houses is taken away: Python and Node may need the rest.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("LONGHOUSE_") || name.starts_with("NATS_") {
                command.env_remove(&*name);
            }
        }
        command
            .env("PATH", path)
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("LONGHOUSE_DIR", &self.house)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a shell script to its end.
    pub(crate) async fn runs(&self, script: &str) -> Output {
        patiently(script, self.shell(script).output()).await.unwrap()
    }

    /// Runs a shell script that must succeed; what it printed.
    pub(crate) async fn says(&self, script: &str) -> String {
        let output = self.runs(script).await;
        printed(script, &output)
    }

    /// Runs a Python program behind the door.
    pub(crate) async fn python(&self, program: &str) -> Output {
        std::fs::write(self.folder.path().join("program.py"), program).unwrap();
        let script = format!("{DOOR}\nexec python3 program.py");
        let mut command = self.shell(&script);
        command.env("PYTHONPATH", install::python()).env("PYTHONDONTWRITEBYTECODE", "1");
        patiently("the end of a Python program", command.output()).await.unwrap()
    }

    /// Runs a Node program behind the door.
    pub(crate) async fn node(&self, program: &str) -> Output {
        std::fs::write(self.folder.path().join("program.mjs"), program).unwrap();
        self.runs(&format!("{DOOR}\nexec node program.mjs")).await
    }
}

/// What it printed; it must have succeeded.
pub(crate) fn printed(what: &str, output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}\n{}\n{stdout}{stderr}", output.status);
    stdout
}
