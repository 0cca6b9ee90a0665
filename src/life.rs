//! Which process this is, and whether another of this machine is gone.

use actors::scheduler::Process;
use bus::server::process::start_ticks;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use std::sync::Arc;

/// This process, for the lease of its scheduler; `None` where the system does not tell enough.
pub(crate) fn process() -> Option<Process> {
    let here = here()?;
    let own = mark(&here, std::process::id())?;
    let mark = own.clone();
    // A process has one scheduler at a time: what this one holds is left over from its last.
    let is_gone = move |mark: &str| mark == own || is_gone(&here, mark);
    Some(Process { mark, is_gone: Arc::new(is_gone) })
}

/// This machine since its last start, and which of its processes can be seen from here: a container
/// counts them anew.
fn here() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), space.display()))
}

fn mark(here: &str, pid: u32) -> Option<String> {
    Some(format!("{here} {pid} {}", start_ticks(pid)?))
}

fn is_gone(here: &str, mark: &str) -> bool {
    let rest = mark.strip_prefix(here).and_then(|rest| rest.strip_prefix(' '));
    let Some((pid, ticks)) = rest.and_then(|rest| rest.split_once(' ')) else { return false };
    let Some(id) = pid.parse().ok().and_then(Pid::from_raw) else { return false };
    let Ok(ticks) = ticks.parse::<u64>() else { return false };
    match test_kill_process(id) {
        Err(Errno::SRCH) => true,
        // One that may not be looked at may be the one.
        _ => start_ticks(id.as_raw_nonzero().get().unsigned_abs()).is_some_and(|now| now != ticks),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_gone_is_gone() {
        let here = here().unwrap();
        let own = std::process::id();
        assert!(!is_gone(&here, &mark(&here, own).unwrap()));
        assert!(is_gone(&here, &format!("{here} {own} 1")), "another had the number");
        assert!(!is_gone(&here, &format!("another machine {own} 1")));
        assert!(!is_gone(&here, "no mark at all"));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let its = mark(&here, child.id()).unwrap();
        assert!(!is_gone(&here, &its));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_gone(&here, &its));
    }
}
