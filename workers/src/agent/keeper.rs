//! Finding a node's keeper, or starting one.

use super::{Error, Keeper, Settings};
use crate::{
    protocol::{FromKeeper, Hello, Incoming, ToKeeper, receive, send},
    socket,
};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// How long a keeper may take to say anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// A worker that has just died may still be attached for a moment.
const ATTACH_TRIES: u32 = 100;
const ATTACH_PAUSE: Duration = Duration::from_millis(50);
/// A log longer than this begins anew.
const MAX_LOG: u64 = 4 * 1024 * 1024;

/// A keeper that has said welcome.
pub(super) struct Found {
    pub(super) stream: UnixStream,
    pub(super) incoming: Incoming,
    pub(super) keeper: Keeper,
    pub(super) started: bool,
}

/// Attaches to the folder's keeper; starts one where there is none.
pub(super) async fn find_or_start(
    settings: &Settings,
    folder: &Path,
    hello: &Hello,
) -> Result<Found, Error> {
    let (settings, folder, hello) = (settings.clone(), folder.to_owned(), hello.clone());
    let found = tokio::task::spawn_blocking(move || {
        let fail = |why: String| Error::Keeper { folder: folder.clone(), why };
        if let Ok(stream) = socket::connect(&folder) {
            return attach(stream, &folder, &hello, false).map_err(fail);
        }
        begin(&settings, &folder).map_err(fail)?;
        let stream = socket::connect(&folder).map_err(|error| fail(error.to_string()))?;
        attach(stream, &folder, &hello, true).map_err(fail)
    });
    found.await.map_err(|error| Error::Keeper { folder: "".into(), why: error.to_string() })?
}

fn attach(
    mut stream: UnixStream,
    folder: &Path,
    hello: &Hello,
    started: bool,
) -> Result<Found, String> {
    let mut tries = 0;
    loop {
        let mut incoming = Incoming::default();
        let io = |error: std::io::Error| error.to_string();
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        let asked = send(&mut stream, &ToKeeper::Hello(Box::new(hello.clone())));
        // A keeper that ends, or that was left a moment ago by another worker, is asked again.
        let why = match asked.and_then(|()| receive(&mut stream, &mut incoming)) {
            Err(error) => chain(&error),
            Ok(Some(FromKeeper::Welcome { instance, since, state, .. })) => {
                stream.set_read_timeout(None).map_err(io)?;
                stream.set_nonblocking(true).map_err(io)?;
                let keeper = Keeper { instance, since, state, left: false };
                return Ok(Found { stream, incoming, keeper, started });
            }
            Ok(Some(FromKeeper::Refused { why })) => why,
            Ok(Some(_)) => return Err("it did not answer hello with welcome".to_owned()),
            Ok(None) => "it hung up".to_owned(),
        };
        tries += 1;
        if tries > ATTACH_TRIES {
            return Err(why);
        }
        std::thread::sleep(ATTACH_PAUSE);
        stream = socket::connect(folder).map_err(io)?;
    }
}

/// Starts a keeper that outlives this process, and waits until it can be spoken to.
fn begin(settings: &Settings, folder: &Path) -> Result<(), String> {
    let log_path = folder.join("keeper.log");
    if std::fs::metadata(&log_path).is_ok_and(|about| about.len() > MAX_LOG) {
        let _ = std::fs::rename(&log_path, folder.join("keeper.log.1"));
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|error| format!("`{}`: {error}", log_path.display()))?;
    let program = settings.keeper_program.display();
    // Nothing of our environment but what makes it speak: it gets ours by word, for the jobs.
    let log_level = settings.env.get("RUST_LOG").map(|level| ("RUST_LOG", level));
    let mut child = Command::new(&settings.keeper_program)
        .args(&settings.keeper_args)
        .arg(folder)
        .env_clear()
        .envs(log_level)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| format!("`{program}` could not be started: {error}"))?;
    let stdout = child.stdout.take().ok_or("its output is not there")?;
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line);
    // It becomes a child of nobody when this process ends; until then somebody must see it end.
    std::thread::Builder::new()
        .name("keeper-end".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            let _ = child.wait();
        })
        .map_err(|error| error.to_string())?;
    match read {
        Ok(_) if line == "ready\n" => Ok(()),
        _ => {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Err(format!("`{program}` ended at once ({last}); see `{}`", log_path.display()))
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
