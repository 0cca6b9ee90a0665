//! Finds a nats-server that is new enough: the one asked for by path, else on the PATH, else in our own cache.

use super::Error;
use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The oldest server that has all that the house relies on.
pub const OLDEST: Version = Version { major: 2, minor: 14, patch: 0 };

/// Where to look; the rooms do not read the environment themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// A server that the user names. If it does not fit, nothing else is tried.
    pub explicit: Option<PathBuf>,
    /// The value of `PATH`.
    pub path: Option<OsString>,
    /// The value of `HOME`, without which Go does not know where to build.
    pub home: Option<PathBuf>,
    /// Our own cache folder, made when something is fetched.
    pub cache: PathBuf,
}

/// A server's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl Version {
    /// Reads what `nats-server --version` prints: `nats-server: v2.15.1`.
    pub fn parse(said: &str) -> Option<Version> {
        let numbers = said.trim().strip_prefix("nats-server: v")?;
        let mut parts = numbers.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = parts.next()?;
        let end = patch.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(patch.len());
        Some(Version { major, minor, patch: patch[..end].parse().ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// How we came by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The user named it.
    Explicit,
    /// It lay on the PATH.
    Path,
    /// It lay in our cache.
    Cache,
    /// Just fetched with pip.
    Pip,
    /// Just built by `go install`.
    Go,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Explicit => "named by the user",
            Origin::Path => "on the PATH",
            Origin::Cache => "from the cache",
            Origin::Pip => "fetched with pip",
            Origin::Go => "built by go install",
        })
    }
}

/// A server that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The program, absolute.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// How we came by it.
    pub origin: Origin,
}

/// A server that is there but cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The program.
    pub path: PathBuf,
    /// Why it cannot be used.
    pub reason: String,
}

/// All that a look around has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// The first that fits.
    pub found: Option<Found>,
    /// Those before it that do not.
    pub passed_over: Vec<PassedOver>,
}

/// Looks for a server without fetching one.
pub fn look(search: &Search) -> Result<Looked, Error> {
    if let Some(path) = &search.explicit {
        let path = std::path::absolute(path).map_err(Error::file("find", path))?;
        return match check(&path) {
            Ok(version) => Ok(Looked {
                found: Some(Found { path, version, origin: Origin::Explicit }),
                passed_over: vec![],
            }),
            Err(reason) => Err(Error::BadBinary { path, reason }),
        };
    }
    let on_path = on_path(search.path.as_ref(), "nats-server").map(|path| (path, Origin::Path));
    let cached = cached(&search.cache).into_iter().map(|path| (path, Origin::Cache));
    let mut looked = Looked::default();
    for (path, origin) in on_path.chain(cached) {
        match check(&path) {
            Ok(version) => {
                looked.found = Some(Found { path, version, origin });
                break;
            }
            Err(reason) => looked.passed_over.push(PassedOver { path, reason }),
        }
    }
    Ok(looked)
}

/// Every program of this name on the PATH, in its order. Relative entries are left out: what they mean
/// depends on where one stands.
pub(crate) fn on_path<'a>(
    path: Option<&'a OsString>,
    name: &'a str,
) -> impl Iterator<Item = PathBuf> + 'a {
    path.into_iter()
        .flat_map(std::env::split_paths)
        .filter(|folder| folder.is_absolute())
        .map(move |folder| folder.join(name))
        .filter(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn cached(cache: &Path) -> Vec<PathBuf> {
    // The second is where the commands put one that a person pastes from our error.
    let places = [super::fetch::cached_path(cache), cache.join("bin/nats-server")];
    places.into_iter().filter(|path| is_program(path)).collect()
}

/// The version, or why the program cannot be used.
pub(crate) fn check(path: &Path) -> Result<Version, String> {
    let said = ask(path).map_err(|error| format!("cannot be started: {error}"))?;
    match Version::parse(&said) {
        None => Err("is no nats-server, or does not start".into()),
        Some(version) if version < OLDEST => {
            Err(format!("is nats-server {version}; {OLDEST} or newer is needed"))
        }
        Some(version) => Ok(version),
    }
}

fn ask(path: &Path) -> io::Result<String> {
    const TRIES: u32 = 50;
    let mut tried = 0;
    loop {
        let said = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        match said {
            // Another thread has forked while we wrote the file and not yet executed its own program.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tried < TRIES => {
                tried += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            said => return Ok(String::from_utf8_lossy(&said?.stdout).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(folder: &Path, says: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join("nats-server");
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_are_read_as_the_server_prints_them() {
        let version = |major, minor, patch| Some(Version { major, minor, patch });
        assert_eq!(Version::parse("nats-server: v2.15.1\n"), version(2, 15, 1));
        assert_eq!(Version::parse("nats-server: v2.14.0-RC.2"), version(2, 14, 0));
        assert_eq!(Version::parse("nats-server: v2.9"), None);
        assert_eq!(Version::parse("command not found"), None);
    }

    #[test]
    fn an_old_version_on_the_path_is_passed_over_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let old = fake(&dir.path().join("old ones"), "nats-server: v2.9.10");
        let new = fake(&dir.path().join("new"), "nats-server: v2.14.3");
        let path = std::env::join_paths([old.parent().unwrap(), new.parent().unwrap()]).unwrap();

        let looked =
            look(&Search { path: Some(path), cache: dir.path().join("none"), ..Search::default() });

        let looked = looked.unwrap();
        assert_eq!(looked.found.unwrap().path, new);
        assert_eq!(
            looked.passed_over,
            [PassedOver {
                path: old,
                reason: "is nats-server 2.9.10; 2.14.0 or newer is needed".into()
            }]
        );
    }

    #[test]
    fn a_server_asked_for_by_path_is_used_or_refused_but_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let old = fake(dir.path(), "nats-server: v2.13.9");
        let error = look(&Search { explicit: Some(old), ..Search::default() }).unwrap_err();
        assert!(error.to_string().ends_with("is nats-server 2.13.9; 2.14.0 or newer is needed"));
        let nothing = Search { explicit: Some("/nowhere/nats-server".into()), ..Search::default() };
        assert!(matches!(look(&nothing), Err(Error::BadBinary { .. })));
    }
}
