//! The shim: a small process between us and the server, which ends the server when we are gone.
//!
//! It is our own program under a hidden name. It leads a process group of its own, so that a Ctrl-C in our
//! terminal does not reach the server before us. Its standard input is a pipe that nobody writes to: the
//! kernel closes it when we end, however we end. No parent-death signal is used, since that is tied to a
//! thread, not to a process. Its standard output is a handle on the folder's lock, handed on to the server.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};

/// The hidden name under which the program becomes the shim.
pub const NAME: &str = "bus-shim";

enum News {
    ServerEnded,
    MasterGone,
}

/// Runs the shim until the server has ended, and returns the server's exit code (128 + n for a signal). The
/// arguments are those after [`NAME`].
pub fn shim_main(arguments: &[OsString]) -> i32 {
    match run(arguments) {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(error) => {
            // Standard error is the server's file for last words; the supervisor reads it from there.
            let _ = writeln!(io::stderr(), "could not run the bus's server: {error}");
            127
        }
    }
}

/// The arguments with which a shim is started.
pub(crate) fn arguments(server: &Path, config: &Path, grace: Duration) -> [OsString; 4] {
    let grace_ms = grace.as_millis().to_string();
    [NAME.into(), server.into(), config.into(), grace_ms.into()]
}

fn run(arguments: &[OsString]) -> io::Result<ExitStatus> {
    let [server, config, grace_ms] = arguments else {
        return Err(io::Error::other(format!("usage: {NAME} SERVER CONFIG GRACE_MS")));
    };
    let grace_ms = grace_ms.to_str().and_then(|text| text.parse().ok());
    let grace = grace_ms.map(Duration::from_millis).ok_or(io::ErrorKind::InvalidInput)?;
    // Started as a link that is named `exe`; process lists should say more.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(c"bus-shim");

    let mut child = spawn(server, config)?;
    let (tell, news) = mpsc::channel();
    watch(&child, tell)?;
    if let Ok(News::MasterGone) = news.recv() {
        end(&child, &news, grace);
    }
    child.wait()
}

fn spawn(server: &OsStr, config: &OsStr) -> io::Result<Child> {
    let lock = io::stdout().as_fd().try_clone_to_owned()?;
    let mut command = Command::new(server);
    // By this name an orphan is known, whatever the program's file is called.
    command.arg0("nats-server").arg("-c").arg(config).stdin(lock).stdout(Stdio::null());
    if let Some(limit) = memory_limit() {
        command.env("GOMEMLIMIT", limit);
    }
    command.spawn()
}

/// On a small machine Go's collector is told to keep below a third of the memory.
fn memory_limit() -> Option<String> {
    #[cfg(target_os = "linux")]
    {
        const SMALL_BYTES: u64 = 8 << 30;
        let info = rustix::system::sysinfo();
        #[expect(clippy::useless_conversion, reason = "32 bits wide on some machines")]
        let total = u64::from(info.totalram) * u64::from(info.mem_unit);
        (total <= SMALL_BYTES).then(|| format!("{}MiB", (total / 3) >> 20))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Two threads, one for each thing that may happen.
fn watch(child: &Child, tell: mpsc::Sender<News>) -> io::Result<()> {
    let pid = pid(child);
    let tell_end = tell.clone();
    std::thread::Builder::new().spawn(move || {
        // It is left for `run` to be reaped, so that its id cannot pass to another process meanwhile.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
        let _ = tell_end.send(News::ServerEnded);
    })?;
    std::thread::Builder::new().spawn(move || {
        // Ends at the end of the pipe, or when the pipe is broken: either way nobody is there.
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        let _ = tell.send(News::MasterGone);
    })?;
    Ok(())
}

fn end(child: &Child, news: &mpsc::Receiver<News>, grace: Duration) {
    let _ = kill_process(pid(child), Signal::TERM);
    if !matches!(news.recv_timeout(grace), Ok(News::ServerEnded)) {
        let _ = kill_process(pid(child), Signal::KILL);
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}
