//! Puts clients that nobody here wrote into the build folder: pinned, once, whole or not at all.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// The Python client, with what it needs for credentials, and MessagePack.
pub(crate) const PYTHON: [&str; 3] = ["nats-py==2.16.0", "nkeys==0.2.1", "msgpack==1.2.4"];
/// The Node client.
pub(crate) const NODE: [&str; 2] = ["@nats-io/transport-node@3.4.0", "@nats-io/nats-core@3.4.0"];
/// The `nats` command.
pub(crate) const NATS: &str = "github.com/nats-io/natscli/nats@v0.4.0";

/// The folder that goes into `PYTHONPATH`.
pub(crate) fn python() -> PathBuf {
    // Parts of it are built for one version of Python.
    let tag = said("python3", &["-c", "import sys; print(sys.implementation.cache_tag)"])
        .expect("the tests need Python 3");
    let name = format!("python {} {}", tag.trim(), PYTHON.join(" "));
    installed(&name, |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--no-warn-script-location", "--target"])
            .arg(folder)
            .args(PYTHON)
            .env("PIP_USER", "0")
            .env("PIP_ROOT_USER_ACTION", "ignore");
        done(&mut pip)
    })
    .unwrap_or_else(|error| panic!("the Python client could not be installed: {error}"))
}

/// The folder that holds `node_modules`.
pub(crate) fn node() -> PathBuf {
    let name = format!("node {}", NODE.map(|package| package.replace('/', "+")).join(" "));
    installed(&name, |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"])
            .args(["--loglevel=error", "--prefix"])
            .arg(folder)
            .args(NODE);
        done(&mut npm)
    })
    .unwrap_or_else(|error| panic!("the Node client could not be installed: {error}"))
}

/// The `nats` command; where it neither is nor can be built, the reason.
pub(crate) fn nats() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("PATH") {
        let fits = |nats: &PathBuf| {
            said(nats, &["--version"])
                .is_ok_and(|version| version.trim_start_matches('v').starts_with("0.4."))
        };
        let found = std::env::split_paths(&path).map(|folder| folder.join("nats")).find(fits);
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let name = NATS.replace('/', "+");
    let built = root().join(&name).join("nats");
    if built.is_file() {
        return Ok(built);
    }
    let go = said("go", &["env", "GOVERSION"])
        .map_err(|error| format!("no `nats` 0.4 in the PATH, and no Go to build it: {error}"))?;
    // From 1.21 on it fetches the version that a module asks for.
    let minor =
        go.trim().strip_prefix("go1.").and_then(|rest| rest.split('.').next()?.parse().ok());
    if minor.is_some_and(|minor: u32| minor < 21) {
        return Err(format!("no `nats` 0.4 in the PATH, and {} is too old to build it", go.trim()));
    }
    installed(&name, |folder| {
        done(Command::new("go").args(["install", NATS]).env("GOBIN", folder))
    })
    .unwrap_or_else(|error| panic!("the `nats` command could not be built: {error}"));
    Ok(built)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients")
}

/// A folder of the build folder that `make` has filled, by whichever test came first.
fn installed(
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let root = root();
    std::fs::create_dir_all(&root).unwrap();
    let lock = File::create(root.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let whole = root.join(name);
    if !whole.is_dir() {
        // It gets its name when all of it is there: an installation that was cut off is none.
        let half = tempfile::Builder::new().prefix("half ").tempdir_in(&root).unwrap();
        make(half.path())?;
        std::fs::rename(half.path(), &whole).unwrap();
    }
    Ok(whole)
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

fn said(program: impl AsRef<OsStr>, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(output.status.to_string()),
    }
}
