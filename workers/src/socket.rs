//! Unix sockets (the keeper's, in a node's folder, above all), however deep they lie: an address has room for about a
//! hundred bytes, so a longer path is gone by way of a descriptor of the folder.

use rustix::fs::{Mode, OFlags};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

const NAME: &str = "keeper.sock";
/// `sun_path` has 108 bytes on Linux, 104 elsewhere, one of them NUL.
const LONGEST: usize = 100;

/// Binds it in place of any that is there; for the owner only.
pub(crate) fn bind(folder: &Path) -> io::Result<UnixListener> {
    listen(&folder.join(NAME))
}

/// Connects to the keeper of a node's folder.
pub fn connect(folder: &Path) -> io::Result<UnixStream> {
    dial(&folder.join(NAME))
}

/// Binds any socket in place of any that is there; for the owner only.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_hold, short) = short(path)?;
    let listener = UnixListener::bind(short)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to any socket.
pub fn dial(path: &Path) -> io::Result<UnixStream> {
    let (_hold, short) = short(path)?;
    UnixStream::connect(short)
}

fn short(path: &Path) -> io::Result<(Option<OwnedFd>, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((None, path.to_owned()));
    };
    if path.as_os_str().len() <= LONGEST || !cfg!(target_os = "linux") {
        return Ok((None, path.to_owned()));
    }
    let folder = rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((Some(folder), short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_folder_has_its_socket_too() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep".repeat(20)).join("deeper".repeat(20));
        fs::create_dir_all(&deep).unwrap();
        let listener = bind(&deep).unwrap();
        let _worker = connect(&deep).unwrap();
        listener.accept().unwrap();
        let mode = fs::metadata(deep.join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
