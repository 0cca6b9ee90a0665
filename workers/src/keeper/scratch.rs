//! Scratch folders: one for each job that runs. Making and removing one costs a quarter of what starting a
//! process costs, so those left empty are used again; what is not empty is removed.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

const MODE: u32 = 0o700;

/// The folder of one job.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    c_path: CString,
    inode: u64,
}

impl Folder {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same for the system.
    pub(crate) fn c_path(&self) -> &CStr {
        &self.c_path
    }

    /// The folder it lies in, where jobs have nothing to do.
    pub(crate) fn outside(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

/// All folders.
#[derive(Debug)]
pub(crate) struct Scratch {
    root: PathBuf,
    ready: Mutex<Vec<Folder>>,
    next: AtomicU64,
}

impl Scratch {
    /// Begins below `root`; whatever an earlier keeper left there is removed.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        remove(&root);
        fs::DirBuilder::new().recursive(true).mode(MODE).create(&root)?;
        Ok(Self { root, ready: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// An empty folder.
    pub(crate) fn give(&self) -> io::Result<Folder> {
        if let Some(folder) = self.ready.lock().expect("no thread panics with it").pop() {
            return Ok(folder);
        }
        let path = self.root.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::DirBuilder::new().mode(MODE).create(&path)?;
        let c_path = CString::new(path.as_os_str().as_bytes())?;
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok(Folder { path, c_path, inode })
    }

    /// Takes one back if its job left it as it was.
    pub(crate) fn take_back_if_empty(&self, folder: Folder) -> Result<(), Folder> {
        let unchanged = || {
            let about = fs::symlink_metadata(&folder.path).ok()?;
            (about.ino() == folder.inode && about.mode() & 0o7777 == MODE).then_some(())?;
            fs::read_dir(&folder.path).ok()?.next().is_none().then_some(())
        };
        if unchanged().is_none() {
            return Err(folder);
        }
        self.ready.lock().expect("no thread panics with it").push(folder);
        Ok(())
    }

    /// Takes one back, whatever is in it.
    pub(crate) fn take_back(&self, folder: Folder) {
        if let Err(folder) = self.take_back_if_empty(folder) {
            remove(&folder.path);
        }
    }
}

/// Removes a folder and all in it, also what its owner made unwritable; follows no link.
fn remove(path: &Path) {
    let Err(error) = fs::remove_dir_all(path) else { return };
    if error.kind() == io::ErrorKind::NotFound {
        return;
    }
    make_writable(path);
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "scratch folder not removed");
    }
}

fn make_writable(path: &Path) {
    let Ok(about) = fs::symlink_metadata(path) else { return };
    if !about.is_dir() {
        // A file or a link in the folder's place.
        let _ = fs::remove_file(path);
        return;
    }
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(MODE));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_left_empty_is_used_again_and_any_other_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(dir.path().join("scratch")).unwrap();

        let first = scratch.give().unwrap();
        let path = first.path().to_owned();
        scratch.take_back(first);
        let again = scratch.give().unwrap();
        assert_eq!(again.path(), path);

        fs::write(path.join("left"), "behind").unwrap();
        scratch.take_back(again);
        assert!(!path.exists());
        assert_ne!(scratch.give().unwrap().path(), path);
    }

    #[test]
    fn what_a_job_made_of_its_folder_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(dir.path().join("scratch")).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("mine"), "").unwrap();

        let folder = scratch.give().unwrap();
        let path = folder.path().to_owned();
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        scratch.take_back(folder);

        assert!(outside.join("mine").exists());
        assert!(fs::symlink_metadata(&path).is_err());
    }
}
