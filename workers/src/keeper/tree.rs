//! Whole trees of processes: who belongs to a job, also when it has left the job's session.
//!
//! The keeper is the subreaper of everything it starts: a process whose parent has ended becomes a child of
//! its main thread, which starts none itself. Such an orphan belongs to a job by its session, by its
//! process group, by the job's variables in its environment, or because it was seen below the job before.
//! One that hides all four is ended when no job runs any more.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A process, as `/proc` shows it.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
}

/// What tells a job's processes from all others.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    /// The main process, which leads session and group.
    pub(crate) leader: i32,
    /// Variables that all of its processes were given.
    pub(crate) variables: Vec<Vec<u8>>,
    /// Processes that were seen below it.
    pub(crate) seen: BTreeSet<i32>,
}

impl Mark {
    fn owns(&self, process: &Process) -> bool {
        process.session == self.leader
            || process.group == self.leader
            || self.seen.contains(&process.pid)
            || has_variables(process.pid, &self.variables)
    }
}

/// The children of this process's main thread: the orphans.
pub(crate) fn orphans() -> Vec<i32> {
    let me = std::process::id();
    match fs::read_to_string(format!("/proc/self/task/{me}/children")) {
        Ok(list) => list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Says TERM or KILL to everything of a job.
pub(crate) fn signal_all(mark: &mut Mark, signal: Signal) {
    let all = processes();
    let mut below = BTreeSet::from([mark.leader]);
    // Parents come before children in no order at all: until nothing is new.
    loop {
        let before = below.len();
        for process in &all {
            if below.contains(&process.parent) {
                below.insert(process.pid);
            }
        }
        if below.len() == before {
            break;
        }
    }
    mark.seen.extend(below);
    kill_group(mark.leader, signal);
    for process in all.iter().filter(|p| p.group != mark.leader && mark.owns(p)) {
        kill(process.pid, signal);
    }
}

/// Kills the orphans of an ended job; says whether any is left.
pub(crate) fn kill_orphans(mark: &Mark) -> bool {
    let mut left = false;
    for pid in reaped_orphans() {
        if process(pid).is_some_and(|process| mark.owns(&process)) {
            kill(pid, Signal::KILL);
            left = true;
        }
    }
    left
}

/// Takes the ends of orphans that have ended, and names those that have not.
pub(crate) fn reaped_orphans() -> Vec<i32> {
    loop {
        let all = orphans();
        let left: Vec<i32> = all
            .iter()
            .copied()
            .filter(|pid| matches!(super::spawn::reap(*pid), Ok(None)))
            .collect();
        // Children of one that has just been reaped may have come meanwhile.
        if left.len() == all.len() {
            return left;
        }
    }
}

/// Kills every orphan.
pub(crate) fn kill_all_orphans() {
    for pid in reaped_orphans() {
        kill(pid, Signal::KILL);
    }
}

/// Signals a process group that this process's child leads.
pub(crate) fn kill_group(leader: i32, signal: Signal) {
    if let Some(leader) = Pid::from_raw(leader) {
        let _ = kill_process_group(leader, signal);
    }
}

fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|pid| !pid.is_init()) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills what an earlier keeper of this folder left running; says how many there were. A process is one of
/// them if its environment names the node, and the scratch folders are where it works or keeps its temporary
/// files; or if it is in a session with such a one, since every job has sessions of its own.
pub(crate) fn kill_left_behind(scratch: &Path, node_variable: &[u8]) -> usize {
    let variable = [b"TMPDIR=", scratch.as_os_str().as_encoded_bytes()].concat();
    let all = processes();
    let mut sessions = BTreeSet::new();
    let mut found = BTreeSet::new();
    for process in &all {
        let environ = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        let mut variables = environ.split(|b| *b == 0);
        let named = variables.clone().any(|v| v == node_variable);
        let mut inside = || {
            let cwd: Option<PathBuf> = fs::read_link(format!("/proc/{}/cwd", process.pid)).ok();
            variables.any(|v| v.starts_with(&variable))
                || cwd.is_some_and(|cwd| cwd.starts_with(scratch))
        };
        if named && inside() {
            found.insert(process.pid);
            sessions.insert(process.session);
        }
    }
    let own_session = process(0).map_or(0, |me| me.session);
    sessions.remove(&own_session);
    found.extend(all.iter().filter(|p| sessions.contains(&p.session)).map(|p| p.pid));
    found.remove(&i32::try_from(std::process::id()).unwrap_or(0));
    for pid in &found {
        kill(*pid, Signal::KILL);
    }
    found.len()
}

fn has_variables(pid: i32, variables: &[Vec<u8>]) -> bool {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let there: BTreeSet<&[u8]> = environ.split(|b| *b == 0).collect();
    variables.iter().all(|variable| there.contains(variable.as_slice()))
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

/// One process; 0 is this one.
fn process(pid: i32) -> Option<Process> {
    let path = if pid == 0 { "/proc/self/stat".into() } else { format!("/proc/{pid}/stat") };
    let stat = fs::read(path).ok()?;
    // The name may hold anything, also brackets: the last one ends it.
    let end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    // A zombie is gone but for being reaped by its parent.
    if fields.next()? == "Z" {
        return None;
    }
    let mut number = || fields.next()?.parse().ok();
    Some(Process { pid, parent: number()?, group: number()?, session: number()? })
}
