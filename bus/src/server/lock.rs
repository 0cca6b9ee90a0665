//! One folder, one master: an exclusive lock, and beside it a note that says who holds it.
//!
//! The kernel frees the lock when the last handle is closed, so nothing is ever left behind by a crash. The
//! bus's server is given a handle too (as its standard input): while it lives, even as an orphan, nobody
//! starts a second one on the same store, which would lose acknowledged messages.

use super::{Error, Paths, Say, process, read_if_there, write_secret};
use schemas::time::Stamp;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

const POLL: Duration = Duration::from_millis(20);
const TRIES: u32 = 10;
/// Ten seconds in all: longer than a server takes to end by itself once its master is gone.
const ROUNDS: u32 = 50;

/// Who holds a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Since when.
    pub since: Stamp,
    /// What it was started as, for people.
    pub command: String,
    /// Tells the process from a later one with the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_ticks: Option<u64>,
}

impl Holder {
    /// This very process.
    pub fn this_process(command: impl Into<String>, since: Stamp) -> Holder {
        let pid = std::process::id();
        Holder { pid, since, command: command.into(), start_ticks: process::start_ticks(pid) }
    }

    /// Who says to hold `folder` and lives.
    pub fn of(folder: &Path) -> Result<Option<Holder>, Error> {
        let note = read_if_there(&folder.join("lock.json"))?;
        let holder = note.and_then(|note| serde_json::from_str::<Holder>(&note).ok());
        Ok(holder.filter(|holder| process::is_alive(holder.pid, holder.start_ticks)))
    }

    pub(crate) fn describe(holder: Option<&Holder>) -> String {
        holder.map_or_else(|| "another process".into(), Holder::to_string)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (process {}, since {})", self.command, self.pid, self.since)
    }
}

/// The right to a folder, for as long as this value lives.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
    note: PathBuf,
}

impl FolderLock {
    /// Takes the folder, which is made if need be, or says who has it ([`Error::Held`]): at once where somebody
    /// says so himself, after a fifth of a second where nobody does.
    pub fn take(folder: &Path, holder: &Holder) -> Result<FolderLock, Error> {
        std::fs::create_dir_all(folder).map_err(Error::file("make the folder", folder))?;
        let path = folder.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let mut tries = 1;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = Holder::of(folder)?;
                    if holder.is_some() || tries == TRIES {
                        return Err(Error::Held { folder: folder.into(), holder });
                    }
                }
                Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
            }
            // A child that the last holder was just starting keeps a copy until it runs its own program.
            tries += 1;
            std::thread::sleep(POLL);
        }
        let lock = FolderLock { file, note: folder.join("lock.json") };
        let note = serde_json::to_vec(holder).expect("numbers and strings always become JSON");
        write_secret(&lock.note, &note)?;
        Ok(lock)
    }

    /// Another handle on the same lock, to be given to a child that must not be forgotten.
    pub fn handle(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(Error::file("share", &self.note))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // A note left behind names a process that is gone or no longer holds anything; who reads it checks.
        let _ = std::fs::remove_file(&self.note);
    }
}

/// Takes a house's folder. Where the one who held it has died and only its bus's server is left, that server
/// is ended first. Blocks for up to ten seconds meanwhile.
pub fn take_house(paths: &Paths, holder: &Holder, say: &Say) -> Result<FolderLock, Error> {
    for _ in 0..ROUNDS {
        let held = match FolderLock::take(paths.folder(), holder) {
            Err(Error::Held { holder: None, .. }) => Holder::of(paths.folder())?,
            Err(Error::Held { folder, holder }) => return Err(Error::Held { folder, holder }),
            other => return other,
        };
        if held.is_none() {
            end_orphans(paths, say)?;
        }
    }
    Err(Error::Held { folder: paths.folder().into(), holder: None })
}

fn end_orphans(paths: &Paths, say: &Say) -> Result<(), Error> {
    let (config, pid_file) = (paths.config(), paths.pid());
    let orphans = process::servers_with(&config, &pid_file);
    // Asked once more after the look around: whoever took the lock just now has left its note before it
    // started its server, so that what was seen without a note is nobody's.
    if orphans.is_empty() || Holder::of(paths.folder())?.is_some() {
        return Ok(());
    }
    process::end_servers(&orphans, &config, &pid_file);
    for pid in orphans {
        say.line(format!("ended process {pid}: this house's bus, left behind by an earlier start"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Holder {
        Holder::this_process("longhouse up", Stamp(1_800_000_000_000))
    }

    #[test]
    fn the_second_who_wants_a_folder_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("nodes/home");
        let lock = FolderLock::take(&node, &me()).unwrap();

        let error = FolderLock::take(&node, &me()).unwrap_err();

        assert_eq!(
            error.to_string(),
            format!(
                "`{}` is in use by `longhouse up` (process {}, since 2027-01-15T08:00:00.000Z)",
                node.display(),
                std::process::id()
            ),
        );
        drop(lock);
        assert_eq!(Holder::of(&node).unwrap(), None);
        FolderLock::take(&node, &me()).unwrap();
    }

    #[test]
    fn the_lock_outlives_its_value_in_a_handle_that_was_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path(), &me()).unwrap();
        let given_away = lock.handle().unwrap();
        drop(lock);
        assert!(matches!(
            FolderLock::take(dir.path(), &me()),
            Err(Error::Held { holder: None, .. })
        ));
        drop(given_away);
        FolderLock::take(dir.path(), &me()).unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_note_that_a_dead_process_left_is_not_believed_though_its_number_is_in_use_again() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("lock.json");
        let earlier = Holder { start_ticks: Some(1), ..me() };
        std::fs::write(&note, serde_json::to_vec(&earlier).unwrap()).unwrap();
        assert_eq!(Holder::of(dir.path()).unwrap(), None);
        std::fs::write(&note, serde_json::to_vec(&me()).unwrap()).unwrap();
        assert_eq!(Holder::of(dir.path()).unwrap(), Some(me()));
        std::fs::write(&note, "half a no").unwrap();
        assert_eq!(Holder::of(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_house_in_use_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(dir.path()).unwrap();
        let _lock = take_house(&paths, &me(), &Say::nothing()).unwrap();
        let second = take_house(&paths, &me(), &Say::nothing());
        assert!(matches!(second, Err(Error::Held { holder: Some(_), .. })), "{second:?}");
    }
}
