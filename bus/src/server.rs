//! The bus comes along: finds or fetches a nats-server, gives it keys and a configuration, and keeps it up
//! as long as this process lives, and not a moment longer.
//!
//! The order is always the same: [`lock::take_house`] makes the folder ours, [`Server::start`] does the rest.

pub mod config;
pub mod fetch;
pub mod find;
pub mod keys;
pub mod lock;
pub mod paths;
pub mod process;
pub mod shim;
pub mod supervise;

pub use find::{Found, Looked, Origin, PassedOver, Search, Version, look};
pub use keys::{Credentials, Keys, Responses, Rights};
pub use lock::{FolderLock, Holder, take_house};
pub use paths::{Door, Paths};
pub use process::PortHolder;
pub use shim::shim_main;
pub use supervise::{Details, Server, Settings, State};

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What can go wrong with a bus of one's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be used.
    #[error("could not {what} `{}`", path.display())]
    File {
        /// What was tried, as a verb: `read`, `write`, `make the folder` …
        what: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("could not start `{}`", program.display())]
    Program {
        /// Which program.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A path that a configuration file cannot hold.
    #[error("the path `{}` holds a character that the bus's configuration cannot", path.display())]
    OddPath {
        /// The path.
        path: PathBuf,
    },
    /// The server that was asked for by path is not one, or too old.
    #[error("`{}` {reason}", path.display())]
    BadBinary {
        /// The path that was given.
        path: PathBuf,
        /// What is the matter with it.
        reason: String,
    },
    /// What was fetched is not what was expected.
    #[error("the fetched nats-server has SHA-256 {found}, not {expected}: refused")]
    WrongHash {
        /// The hash that is pinned.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// No server is here and none could be fetched; the sentence holds the commands to paste.
    #[error("{0}")]
    CannotFetch(String),
    /// A key file does not hold a key.
    #[error("`{}` does not hold a key of the house", path.display())]
    BadKey {
        /// Which file.
        path: PathBuf,
    },
    /// A name that may not stand in a subject.
    #[error(
        "`{0}` is no name: lower-case letters, digits, `-` and `_`, at most 36, not beginning with `-` or `_`"
    )]
    BadName(String),
    /// Somebody else holds the folder.
    #[error("`{}` is in use by {}", folder.display(), Holder::describe(holder.as_ref()))]
    Held {
        /// The folder.
        folder: PathBuf,
        /// Who holds it, as far as is known.
        holder: Option<Holder>,
    },
    /// The house's port belongs to another program.
    #[error("port {port}, which this house uses, is taken by {}", PortHolder::describe(holder.as_ref()))]
    PortTaken {
        /// The port.
        port: u16,
        /// Who listens there, as far as can be seen.
        holder: Option<PortHolder>,
    },
    /// The server ended before it answered.
    #[error("the bus's server ended before it was ready ({how}){}", said(tail))]
    Died {
        /// Exit code or signal, in words.
        how: String,
        /// The last lines it wrote.
        tail: String,
    },
    /// The server runs but does not answer.
    #[error("the bus's server did not answer within {after_s} s{}", said(tail))]
    NotReady {
        /// How long it was given.
        after_s: u64,
        /// The last lines it wrote.
        tail: String,
    },
    /// A task of ours ended before it was done, which happens only while the program ends.
    #[error("the program is ending")]
    Ending,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    }
}

fn said(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!(", saying:\n{tail}") }
}

/// Where sentences about progress go; whoever prints hands one in.
#[derive(Clone)]
pub struct Say(Arc<dyn Fn(&str) + Send + Sync>);

impl Say {
    /// Hands each sentence to `listener`.
    pub fn new(listener: impl Fn(&str) + Send + Sync + 'static) -> Say {
        Say(Arc::new(listener))
    }

    /// Drops all sentences; they still go to the log.
    pub fn nothing() -> Say {
        Say::new(|_| {})
    }

    pub(crate) fn line(&self, sentence: impl AsRef<str>) {
        let sentence = sentence.as_ref();
        tracing::info!(sentence, "bus server");
        (self.0)(sentence);
    }
}

impl fmt::Debug for Say {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Say")
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(Error::file("write in", folder))?;
    file.write_all(content)
        .and_then(|()| file.as_file().sync_all())
        .map_err(Error::file("write", path))?;
    file.persist(path).map_err(|error| Error::file("write", path)(error.error))?;
    Ok(())
}

/// Makes a folder, and those above it, that only its owner may enter.
pub(crate) fn private_folder(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .map_err(Error::file("make the folder", path))
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(Error::file("read", path))
}

pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}
