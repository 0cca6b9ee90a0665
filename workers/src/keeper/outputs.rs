//! Reading the declared outputs of a job from its scratch folder: regular files, in the folder itself.

use super::{core::Job, launch::filled};
use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use schemas::outcome::{Ending, INLINE_BYTES, IndexState, reason};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Component, Path},
};

/// All outputs of a job together: a report must fit into one message of the bus.
const MAX_TOGETHER: usize = 512 * 1024;

/// Reads them into the ending, which fails where it had finished and one is missing or too large.
pub(crate) fn read_all(job: &Job, folder: &Path, ending: &mut Ending) {
    if ending.reason.as_deref() == Some(reason::NOT_STARTED) {
        return;
    }
    let mut together = 0;
    for output in &job.shared.spec.outputs {
        let path = filled(job, &output.path);
        let failure = match read(folder, Path::new(&path), MAX_TOGETHER - together) {
            Ok(bytes) => {
                together += bytes.len();
                ending.outputs.insert(output.name.clone(), bytes.into());
                continue;
            }
            Err(failure) => failure,
        };
        // A job that failed by itself has the better reason.
        if ending.state == IndexState::Finished {
            let (word, why) = failure.said(&path);
            ending.state = IndexState::Failed;
            ending.reason = Some(word.to_owned());
            ending.why = Some(why);
        }
    }
}

#[derive(Debug)]
enum Failure {
    Missing(io::Error),
    NoFile,
    TooLarge(u64),
    TooMuch,
}

impl Failure {
    fn said(self, path: &str) -> (&'static str, String) {
        match self {
            Failure::Missing(error) => {
                (reason::OUTPUT_MISSING, format!("the output `{path}` is not there: {error}"))
            }
            Failure::NoFile => {
                (reason::OUTPUT_MISSING, format!("the output `{path}` is no regular file"))
            }
            Failure::TooLarge(bytes) => (
                reason::OUTPUT_TOO_LARGE,
                format!("the output `{path}` has {bytes} bytes, more than {INLINE_BYTES}"),
            ),
            Failure::TooMuch => (
                reason::OUTPUT_TOO_LARGE,
                format!("the outputs up to `{path}` have more than {MAX_TOGETHER} bytes together"),
            ),
        }
    }
}

fn read(folder: &Path, path: &Path, room: usize) -> Result<Vec<u8>, Failure> {
    let file = open_below(folder, path).map_err(Failure::Missing)?;
    let about = fstat(&file).map_err(|error| Failure::Missing(error.into()))?;
    if !FileType::from_raw_mode(about.st_mode).is_file() {
        return Err(Failure::NoFile);
    }
    let mut bytes = Vec::new();
    let limit = INLINE_BYTES as u64 + 1;
    File::from(file).take(limit).read_to_end(&mut bytes).map_err(Failure::Missing)?;
    if bytes.len() > INLINE_BYTES {
        return Err(Failure::TooLarge(u64::try_from(about.st_size).unwrap_or(limit).max(limit)));
    }
    if bytes.len() > room {
        return Err(Failure::TooMuch);
    }
    Ok(bytes)
}

/// Opens step by step and follows no link, so that no link leads out; never waits for a FIFO's other end.
fn open_below(folder: &Path, path: &Path) -> io::Result<OwnedFd> {
    let common = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let step = common | OFlags::DIRECTORY;
    let mut at = open(folder, step, Mode::empty())?;
    let mut parts = path.components().filter(|part| *part != Component::CurDir).peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else {
            return Err(io::Error::other("it is outside the scratch folder"));
        };
        let flags = if parts.peek().is_some() { step } else { common | OFlags::NONBLOCK };
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(at)
}
