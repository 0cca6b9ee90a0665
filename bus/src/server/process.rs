//! Other processes on this machine: who lives, who holds a port, which one is a server of ours, and how
//! such a one is ended.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{fmt, path::Path, time::Duration};

const POLL: Duration = Duration::from_millis(10);
const GRACE_POLLS: u32 = 500;

/// A program that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortHolder {
    /// The program's name, where it may be seen.
    pub name: Option<String>,
    /// Its process id, where it may be seen.
    pub pid: Option<u32>,
    /// The user it runs as.
    pub uid: Option<u32>,
}

impl PortHolder {
    pub(crate) fn describe(holder: Option<&PortHolder>) -> String {
        holder.map_or_else(|| "another program".into(), PortHolder::to_string)
    }
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.pid, self.uid) {
            (Some(name), Some(pid), _) => write!(f, "`{name}` (process {pid})"),
            (_, _, Some(uid)) => write!(f, "a program of the user with id {uid}"),
            _ => f.write_str("another program"),
        }
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Who listens on `port` of the loopback interface, as far as this user may see.
#[cfg(target_os = "linux")]
pub fn port_holder(port: u16) -> Option<PortHolder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let (uid, inode) = tables.into_iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| listener(line, port))
    })?;
    let socket = format!("socket:[{inode}]");
    // Children may have inherited it; the eldest is the one a person knows.
    let pid = pids().filter(|pid| holds(*pid, &socket)).min_by_key(|pid| start_ticks(*pid));
    Some(PortHolder { name: pid.and_then(name), pid, uid: Some(uid) })
}

/// Who listens on `port` of the loopback interface, as far as this user may see.
#[cfg(not(target_os = "linux"))]
pub fn port_holder(port: u16) -> Option<PortHolder> {
    let said = std::process::Command::new("lsof")
        .args(["-nP", &format!("-iTCP:{port}"), "-sTCP:LISTEN", "-Fpcu"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&said.stdout);
    let field = |kind| text.lines().find_map(|line| line.strip_prefix(kind));
    Some(PortHolder {
        name: field('c').map(str::to_owned),
        pid: field('p').and_then(|pid| pid.parse().ok()),
        uid: field('u').and_then(|uid| uid.parse().ok()),
    })
}

/// The user and the socket's inode, if this line of the kernel's table is a listener on `port`.
#[cfg(target_os = "linux")]
fn listener(line: &str, port: u16) -> Option<(u32, u64)> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, listens_on) = fields.get(1)?.rsplit_once(':')?;
    let fits = u16::from_str_radix(listens_on, 16) == Ok(port) && *fields.get(3)? == LISTEN;
    if fits { Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?)) } else { None }
}

#[cfg(target_os = "linux")]
fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(target_os = "linux")]
fn holds(pid: u32, socket: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .flatten()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == socket))
}

#[cfg(target_os = "linux")]
fn name(pid: u32) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}

/// When a process began, in ticks since boot: tells it from a later one with the same id.
#[cfg(target_os = "linux")]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses; what follows the last one is regular.
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
    let state = after_name.next()?;
    if matches!(state, "Z" | "X") { None } else { after_name.nth(18)?.parse().ok() }
}

/// When a process began, where the system tells.
#[cfg(not(target_os = "linux"))]
pub fn start_ticks(_: u32) -> Option<u64> {
    None
}

/// Whether the process lives and is the very one that began at `start_ticks`.
pub(crate) fn is_alive(pid: u32, began: Option<u64>) -> bool {
    if cfg!(target_os = "linux") {
        return start_ticks(pid).is_some_and(|ticks| began.is_none_or(|began| began == ticks));
    }
    let Some(pid) = as_pid(pid) else { return false };
    matches!(test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM))
}

/// Servers that run with exactly this configuration file, and so are ours, whoever started them.
#[cfg(target_os = "linux")]
pub(crate) fn servers_with(config: &Path, _pid_file: &Path) -> Vec<u32> {
    use std::os::unix::ffi::OsStrExt;
    let config = config.as_os_str().as_bytes();
    pids()
        .filter(|pid| {
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let is_server = arguments[0].ends_with(b"nats-server")
                || std::fs::read_link(format!("/proc/{pid}/exe"))
                    .is_ok_and(|exe| exe.to_string_lossy().contains("nats-server"));
            is_server
                && arguments.windows(2).any(|pair| pair[0] == b"-c" && pair[1] == config)
                && !arguments.contains(&b"-t".as_slice())
        })
        .collect()
}

/// Servers that run with exactly this configuration file, and so are ours, whoever started them.
#[cfg(not(target_os = "linux"))]
pub(crate) fn servers_with(config: &Path, pid_file: &Path) -> Vec<u32> {
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    let runs_it = |pid: &u32| {
        std::process::Command::new("ps")
            .args(["-ww", "-o", "command=", "-p", &pid.to_string()])
            .output()
            .is_ok_and(|said| {
                let line = String::from_utf8_lossy(&said.stdout);
                line.contains("nats-server") && line.contains(&*config.to_string_lossy())
            })
    };
    pid.into_iter().filter(runs_it).collect()
}

/// Ends these servers, as far as they still run with this configuration, and returns once they are gone.
pub(crate) fn end_servers(servers: &[u32], config: &Path, pid_file: &Path) {
    let left = || -> Vec<u32> {
        servers_with(config, pid_file).into_iter().filter(|pid| servers.contains(pid)).collect()
    };
    for signal in [Signal::TERM, Signal::KILL] {
        for pid in left().into_iter().filter_map(as_pid) {
            // One that has gone meanwhile is what we want.
            let _ = kill_process(pid, signal);
        }
        for _ in 0..GRACE_POLLS {
            if left().is_empty() {
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_a_port_is_named() {
        let port = crate::server::config::free_port().unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();

        let holder = port_holder(port).unwrap();

        let me = std::process::id();
        assert_eq!(holder.pid, Some(me));
        assert_eq!(holder.to_string(), format!("`{}` (process {me})", name(me).unwrap()));
        let nobodys = crate::server::config::free_port().unwrap();
        assert_eq!(port_holder(nobodys), None);
        drop(listener);
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_even_before_it_is_waited_for() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let began = start_ticks(child.id());
        assert!(is_alive(child.id(), began));
        assert!(!is_alive(child.id(), began.map(|ticks| ticks + 1)), "a namesake is another");

        drop(child.stdin.take());
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut rest).unwrap();
        child.wait().unwrap();
        assert!(!is_alive(child.id(), began));
    }
}
