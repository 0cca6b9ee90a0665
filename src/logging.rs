//! Where logs go: long-lived parts into the house's folder, commands to stderr.

use anyhow::Context;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// A log file that has grown so large is put aside.
const LARGEST_BYTES: u64 = 16 * 1024 * 1024;
/// So many put aside are kept.
const KEPT: u32 = 4;

/// Logs of a command, to stderr: what is unexpected, or more with `-v`.
pub(crate) fn to_stderr(verbose: u8, rust_log: Option<&str>) {
    let default = match verbose {
        // That the bus is gone is said by who waits for it.
        0 => "warn,bus=error,async_nats=off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    begin(filter(rust_log, default), anstream::stderr, true);
}

/// Logs of a long-lived part, to `<folder>/logs/<part>.log`. They are written as long as the
/// returned guard lives.
pub(crate) fn to_file(
    folder: &Path,
    part: &str,
    verbose: u8,
    rust_log: Option<&str>,
) -> anyhow::Result<WorkerGuard> {
    let default = match verbose {
        0 => "info,async_nats=warn",
        1 => "debug,async_nats=info",
        _ => "trace",
    };
    let file = Rotating::open(folder.join("logs").join(format!("{part}.log")), LARGEST_BYTES)?;
    let (writer, guard) = tracing_appender::non_blocking(file);
    begin(filter(rust_log, default), writer, false);
    Ok(guard)
}

fn filter(rust_log: Option<&str>, default: &str) -> EnvFilter {
    EnvFilter::new(rust_log.filter(|text| !text.is_empty()).unwrap_or(default))
}

fn begin<W>(filter: EnvFilter, writer: W, short: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // Only the first call in a process counts; a second one would be a command within a command.
    let _ = if short {
        builder.without_time().with_target(false).compact().try_init()
    } else {
        builder.with_ansi(false).try_init()
    };
}

/// A file that is put aside when it is full: `x.log` becomes `x.log.1`, that `x.log.2` …
struct Rotating {
    path: PathBuf,
    file: File,
    bytes: u64,
    largest_bytes: u64,
}

impl Rotating {
    fn open(path: PathBuf, largest_bytes: u64) -> anyhow::Result<Self> {
        let doing = || format!("could not write the log `{}`", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(doing)?;
        }
        let file = append(&path).with_context(doing)?;
        let bytes = file.metadata().with_context(doing)?.len();
        Ok(Self { path, file, bytes, largest_bytes })
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            // Those that are not there yet need not be moved.
            let _ = std::fs::rename(self.aside(number), self.aside(number + 1));
        }
        std::fs::rename(&self.path, self.aside(1))?;
        self.file = append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > self.largest_bytes {
            self.rotate()?;
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_only_the_last_few_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/part.log");
        let mut log = Rotating::open(path.clone(), 10).unwrap();
        for line in 0..8 {
            log.write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line 7\n");
        assert_eq!(std::fs::read_to_string(log.aside(1)).unwrap(), "line 6\n");
        assert_eq!(std::fs::read_to_string(log.aside(4)).unwrap(), "line 3\n");
        assert!(!log.aside(5).exists());
    }

    #[test]
    fn a_log_goes_on_where_the_last_process_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part.log");
        Rotating::open(path.clone(), 100).unwrap().write_all(b"one\n").unwrap();
        Rotating::open(path.clone(), 100).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
