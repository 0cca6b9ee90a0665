//! Where everything of a house's bus lies in the house's folder.

use super::{Error, read_if_there, write_secret};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The places in one house's folder that belong to its bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    folder: PathBuf,
}

impl Paths {
    /// Makes the folder if need be. The path is resolved: an orphaned server is known by it, whatever
    /// link the next command came by.
    pub fn open(folder: &Path) -> Result<Paths, Error> {
        use std::os::unix::fs::DirBuilderExt;
        // Only what is new is made private: the mode of a folder that was there is the user's affair.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(Error::file("make the folder", folder))?;
        let folder = folder.canonicalize().map_err(Error::file("open the folder", folder))?;
        if folder.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
            return Err(Error::OddPath { path: folder });
        }
        Ok(Paths { folder })
    }

    /// The house's folder itself, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Seeds and tokens of the house.
    pub fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// What belongs to the server alone.
    pub fn bus(&self) -> PathBuf {
        self.folder.join("bus")
    }

    /// The server's configuration, written anew at each start.
    pub fn config(&self) -> PathBuf {
        self.bus().join("nats.conf")
    }

    /// The server's process id, as it writes it.
    pub fn pid(&self) -> PathBuf {
        self.bus().join("pid")
    }

    /// The port the house has chosen.
    pub fn port(&self) -> PathBuf {
        self.bus().join("port")
    }

    /// How many bytes JetStream may hold on disk, written at the first start.
    pub fn max_file_store(&self) -> PathBuf {
        self.bus().join("max_file_store")
    }

    /// JetStream's own folder.
    pub fn jetstream(&self) -> PathBuf {
        self.bus().join("jetstream")
    }

    /// Logs of every part of the house.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The server's log, which it rotates itself.
    pub fn log(&self) -> PathBuf {
        self.logs().join("bus.log")
    }

    /// What the server says outside its log: a broken configuration, a crash.
    pub fn stderr(&self) -> PathBuf {
        self.logs().join("bus.stderr")
    }

    /// The owner's credentials.
    pub fn creds(&self) -> PathBuf {
        self.folder.join("owner.creds")
    }

    /// The context file for the `nats` command.
    pub fn context(&self) -> PathBuf {
        self.folder.join("nats.json")
    }

    /// The port the house has chosen, if it has.
    pub fn kept_port(&self) -> Result<Option<u16>, Error> {
        let text = read_if_there(&self.port())?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// How to reach the house's bus, as its context file says; `None` before its first start.
    pub fn door(&self) -> Result<Option<Door>, Error> {
        let path = self.context();
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::file("understand", &path)(error.into()))
    }

    /// Writes the context file, in the form of the `nats` command.
    pub fn write_context(&self, door: &Door) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(door).expect("strings always become JSON");
        write_secret(&self.context(), format!("{text}\n").as_bytes())
    }
}

/// How to reach a bus: a context of the `nats` command, of which only these fields are ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// For people who list their contexts.
    #[serde(default)]
    pub description: String,
    /// `nats://host:port`.
    pub url: String,
    /// Absolute path of a credentials file.
    #[serde(default)]
    pub creds: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_known_by_its_real_path_whatever_link_leads_there() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("a house");
        let first = Paths::open(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();

        assert_eq!(Paths::open(&dir.path().join("link")).unwrap(), first);
    }

    #[test]
    fn a_path_with_a_line_break_is_refused_before_it_breaks_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let odd = Paths::open(&dir.path().join("two\nlines"));
        assert!(matches!(odd, Err(Error::OddPath { .. })), "{odd:?}");
    }

    #[test]
    fn the_context_file_says_how_to_get_in() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        assert_eq!(paths.door().unwrap(), None);
        let door = Door {
            description: "a house".into(),
            url: "nats://127.0.0.1:1".into(),
            creds: paths.creds(),
        };
        paths.write_context(&door).unwrap();
        assert_eq!(paths.door().unwrap(), Some(door));
    }
}
