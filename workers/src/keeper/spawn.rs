//! Starting and reaping processes: the only file with `unsafe` in it.
//!
//! `posix_spawn` starts a process without copying the keeper's memory; what the child must be (a session of
//! its own, its folder, its descriptors, signals as they come from the factory) is said by attributes, so
//! that none of our code runs between fork and exec.
#![expect(unsafe_code, reason = "posix_spawn, wait4 and their structs have no safe wrapper")]

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// A session of its own.
#[cfg(target_os = "linux")]
const SETSID: libc::c_int = libc::POSIX_SPAWN_SETSID as libc::c_int;
/// The same on macOS, where the `libc` crate does not name it.
#[cfg(not(target_os = "linux"))]
const SETSID: libc::c_int = 0x400;

/// What is started.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    /// The program's path, absolute or below `folder`.
    pub(crate) program: &'a CStr,
    /// Its arguments, the first is its name.
    pub(crate) argv: &'a [CString],
    /// `NAME=value`, nothing else.
    pub(crate) env: &'a [CString],
    /// Where it starts.
    pub(crate) folder: &'a CStr,
    /// Its descriptors 0, 1, 2; all others of ours are closed by being `CLOEXEC`.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
}

/// How a process ended, and what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Its code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal.
    pub(crate) signal: Option<i32>,
    /// Processor time of it and of those it waited for, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// Largest resident memory of one of them.
    pub(crate) memory_peak_mib: u64,
}

/// Starts it in a session (and process group) of its own and gives its id.
pub(crate) fn spawn(command: &Command<'_>) -> io::Result<i32> {
    let argv = pointers(command.argv);
    let env = pointers(command.env);
    let mut attributes = Attributes::new()?;
    attributes.own_session_and_default_signals()?;
    let mut actions = Actions::new()?;
    for (to, from) in (0..).zip(&command.stdio) {
        actions.dup2(from.as_raw_fd(), to)?;
    }
    actions.chdir(command.folder)?;
    let mut pid = 0;
    // SAFETY: all pointers are to live, NUL-terminated data; attributes and actions are initialised.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            command.program.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok(pid)
}

/// Takes the end of a child, if it has ended.
pub(crate) fn reap(pid: i32) -> io::Result<Option<Exit>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live memory of the right types.
    let got = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if got == -1 {
        return Err(io::Error::last_os_error());
    }
    if got == 0 {
        return Ok(None);
    }
    // SAFETY: zeroed is a valid rusage, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    let ms = |t: libc::timeval| {
        u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + u64::try_from(t.tv_usec).unwrap_or(0) / 1000
    };
    let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    // Linux counts in KiB, macOS in bytes.
    let peak_mib = if cfg!(target_os = "macos") { peak >> 20 } else { peak >> 10 };
    Ok(Some(Exit {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime),
        memory_peak_mib: peak_mib,
    }))
}

/// Marks every descriptor but 0, 1 and 2 to be closed in children: whoever started the keeper may have left
/// some open that jobs have nothing to do with.
pub(crate) fn close_inherited_in_children() {
    let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    let open = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for fd in open.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if fd > 2 {
            // SAFETY: it sets a flag of a descriptor of this process, or fails where it is closed.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init fills the memory it is given.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        Ok(Self(raw))
    }

    fn own_session_and_default_signals(&mut self) -> io::Result<()> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        let flags = SETSID
            | libc::c_int::from(libc::POSIX_SPAWN_SETSIGDEF)
            | libc::c_int::from(libc::POSIX_SPAWN_SETSIGMASK);
        // SAFETY: the sets are filled before they are read; the attributes are initialised.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::sigemptyset(none.as_mut_ptr());
            // Their action cannot be set; some libraries refuse the whole set then.
            libc::sigdelset(all.as_mut_ptr(), libc::SIGKILL);
            libc::sigdelset(all.as_mut_ptr(), libc::SIGSTOP);
            check(libc::posix_spawnattr_setsigdefault(self.0.as_mut_ptr(), all.as_ptr()))?;
            check(libc::posix_spawnattr_setsigmask(self.0.as_mut_ptr(), none.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(
                self.0.as_mut_ptr(),
                libc::c_short::try_from(flags).expect("flags are small"),
            ))
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: it was initialised.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init fills the memory it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        Ok(Self(raw))
    }

    fn dup2(&mut self, from: i32, to: i32) -> io::Result<()> {
        // SAFETY: the actions are initialised. The keeper holds 0, 1 and 2 itself, so `from` is never `to`.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from, to) })
    }

    fn chdir(&mut self, folder: &CStr) -> io::Result<()> {
        // SAFETY: the actions are initialised; the path is copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(self.0.as_mut_ptr(), folder.as_ptr())
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: it was initialised.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}
