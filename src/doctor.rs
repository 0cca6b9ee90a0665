//! `longhouse doctor`: checks everything, and says how to mend what is broken.

use crate::{
    app::App, client::House, config, connect, failure::Failure, nodes, report::Report, style, up,
};
use bus::{clock, server::look};
use owo_colors::OwoColorize;
use schemas::{
    node::NodeState,
    request::{List, Nodes, NodesReply, Works},
};
use serde::Serialize;
use std::{
    fmt,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// A disk with less free than this share of it refuses works.
const LITTLE_SPACE: f64 = 0.1;
/// A round trip longer than this is worth a word.
const SLOW: Duration = Duration::from_millis(500);

/// Check everything, and say how to mend what is broken
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let mut checks = Checks::default();
        checks.folder(&app.dir);
        checks.space(&app.dir);
        checks.secrets(&app.dir);
        checks.server(app);
        checks.house(app).await;
        checks.keepers(&app.dir);
        checks.programs(app);
        let bad = checks.checks.iter().any(|check| check.verdict == Verdict::Bad);
        Ok(Report::of(&checks).with_code(u8::from(bad)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Good,
    /// It works, but not as it might.
    Poor,
    Bad,
}

/// What was looked at, what was found, and what to do about it.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    fix: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Checks {
    checks: Vec<Check>,
}

impl Checks {
    fn good(&mut self, what: &'static str, found: impl Into<String>) {
        self.checks.push(Check { what, verdict: Verdict::Good, found: found.into(), fix: None });
    }

    fn add(
        &mut self,
        what: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.checks.push(Check { what, verdict, found: found.into(), fix: Some(fix.into()) });
    }

    fn folder(&mut self, dir: &Path) {
        let what = "folder";
        let shown = dir.display();
        let Ok(known) = dir.metadata() else {
            let fix = "`longhouse up` makes it; `--dir FOLDER` names another";
            return self.add(what, Verdict::Bad, format!("{shown} is not there"), fix);
        };
        if let Err(error) = tempfile::tempfile_in(dir) {
            let fix = format!("make it yours: chown -R \"$(id -un)\" {}", quoted(dir));
            return self.add(
                what,
                Verdict::Bad,
                format!("cannot write into {shown}: {error}"),
                fix,
            );
        }
        if known.permissions().mode() & 0o022 != 0 {
            let fix = format!("chmod go-w {}", quoted(dir));
            let found = format!("others may write into {shown}");
            return self.add(what, Verdict::Poor, found, fix);
        }
        self.good(what, shown.to_string());
    }

    fn space(&mut self, dir: &Path) {
        let what = "disk";
        let there = dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
        let Ok(known) = rustix::fs::statvfs(there) else { return };
        let free = known.f_bavail * known.f_frsize;
        let share = known.f_bavail as f64 / known.f_blocks.max(1) as f64;
        // Rounded down: 9.9 % must not be called 10 % and too little at once.
        let percent = (share * 100.0).floor();
        let found = format!("{} free ({percent:.0} %)", style::size(free));
        if share < LITTLE_SPACE {
            let fix = "free some: below 10 % submits are refused (`disk_full`)";
            return self.add(what, Verdict::Bad, found, fix);
        }
        self.good(what, found);
    }

    /// What must be readable by its owner only.
    fn secrets(&mut self, dir: &Path) {
        let what = "credentials";
        let creds = dir.join("owner.creds");
        let keys = dir.join("keys");
        let open = |path: &PathBuf| {
            path.metadata().is_ok_and(|known| known.permissions().mode() & 0o077 != 0)
        };
        let open: Vec<String> = [&creds, &keys]
            .into_iter()
            .filter(|path| open(path))
            .map(|path| quoted(path))
            .collect();
        if !open.is_empty() {
            let fix = format!("chmod go-rwx {}", open.join(" "));
            return self.add(what, Verdict::Bad, "others may read your keys", fix);
        }
        if creds.is_file() {
            self.good(what, format!("{}, readable by you only", creds.display()));
        }
    }

    fn server(&mut self, app: &App) {
        let what = "nats-server";
        let runs_here = app.dir.join("keys").is_dir() || !app.dir.is_dir();
        let found = up::search(app).and_then(|search| Ok(look(&search)?));
        match found {
            Err(error) => {
                let fix = "set `bus.server` to a nats-server of version 2.14 or later";
                self.add(what, Verdict::Bad, error.to_string(), fix);
            }
            Ok(looked) => match looked.found {
                Some(found) => {
                    let where_from =
                        format!("{} at {}, {}", found.version, found.path.display(), found.origin);
                    self.good(what, where_from);
                }
                None if runs_here => {
                    let old: Vec<String> = looked
                        .passed_over
                        .iter()
                        .map(|over| format!("{} {}", over.path.display(), over.reason))
                        .collect();
                    let found =
                        if old.is_empty() { "none here".to_owned() } else { old.join("; ") };
                    let fix = "`longhouse up` fetches one (needs Python 3 with pip, or Go)";
                    self.add(what, Verdict::Poor, found, fix);
                }
                None => self.good(what, "none here; this folder uses a bus that runs elsewhere"),
            },
        }
    }

    async fn house(&mut self, app: &App) {
        let what = "bus";
        let house = match app.house().await {
            Ok(house) => house,
            Err(error) => {
                let Failure { message, hint, .. } = Failure::of(&error);
                let fix = match app.dir.join("logs/bus.log") {
                    log if log.is_file() => {
                        format!(
                            "`longhouse up` raises the house; why the bus ended: {}",
                            log.display()
                        )
                    }
                    _ => hint.unwrap_or_else(|| "`longhouse up` raises the house".to_owned()),
                };
                return self.add(what, Verdict::Bad, message, fix);
            }
        };
        let url = connect::door(app).map(|door| door.url).unwrap_or_default();
        match house.bus.round_trip().await {
            Ok(time) => {
                let version = house.bus.server_version();
                let found = format!("{url}, version {version}, round trip {} ms", time.as_millis());
                if time > SLOW {
                    let fix = "the line is slow or full: `longhouse watch` shows the traffic";
                    self.add(what, Verdict::Poor, found, fix);
                } else {
                    self.good(what, found);
                }
            }
            Err(error) => self.add(what, Verdict::Bad, error.to_string(), "try again in a moment"),
        }
        self.manager(&house, &app.dir).await;
        self.scheduler(&house, &app.dir).await;
    }

    async fn manager(&mut self, house: &House, dir: &Path) {
        let began = clock::at();
        let request = List { limit: Some(1), ..List::default() };
        match house.work::<Works>("list", &request).await {
            Ok(_) => {
                self.good("manager", format!("answers in {} ms", clock::at().since(began)));
            }
            Err(error) => self.add(
                "manager",
                Verdict::Bad,
                error.to_string(),
                fix_for(&error, "manager", dir),
            ),
        }
    }

    async fn scheduler(&mut self, house: &House, dir: &Path) {
        let began = clock::at();
        let reply: NodesReply = match house.sched("nodes", &Nodes::default()).await {
            Ok(reply) => reply,
            Err(error) => {
                let fix = fix_for(&error, "scheduler", dir);
                return self.add("scheduler", Verdict::Bad, error.to_string(), fix);
            }
        };
        let paused = if reply.paused { ", the pool is paused" } else { "" };
        self.good("scheduler", format!("answers in {} ms{paused}", clock::at().since(began)));
        self.nodes(&reply);
    }

    fn nodes(&mut self, reply: &NodesReply) {
        let (what, nodes) = ("nodes", &reply.nodes);
        let alive = nodes.iter().filter(|node| node.state == NodeState::Ready).count();
        let found = format!("{alive} of {} ready", nodes.len());
        if alive == 0 {
            let fix = "`longhouse worker` lends this machine; `longhouse undrain NODE` lets one work again";
            self.add(what, Verdict::Bad, found, fix);
        } else {
            self.good(what, found);
        }
        for node in nodes {
            if matches!(node.state, NodeState::Silent | NodeState::Lost) {
                let why = node.why.clone().unwrap_or_else(|| node.state.as_str().to_owned());
                let fix =
                    format!("look at the machine `{}`: is it on, is its network up?", node.node);
                self.add("node", Verdict::Poor, format!("{}: {why}", node.node), fix);
            }
            if node.clock_ahead_s.abs() > nodes::CLOCK_OFF_S {
                let fix = "let it keep time by the network (`timedatectl set-ntp true`)";
                self.add("clock", Verdict::Poor, nodes::clock_sentence(node), fix);
            }
        }
    }

    /// Nodes of this machine: a keeper that does not answer holds jobs that nobody can reach.
    fn keepers(&mut self, dir: &Path) {
        let Ok(entries) = std::fs::read_dir(dir.join("nodes")) else { return };
        for node in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if !node.join("keeper.sock").exists() {
                continue;
            }
            let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match workers::connect(&node) {
                Ok(_) => self.good("keeper", format!("{name}: answers")),
                Err(error) => {
                    let fix = "the next `longhouse up` or `longhouse worker` starts a new one";
                    self.add("keeper", Verdict::Poor, format!("{name}: gone ({error})"), fix);
                }
            }
        }
    }

    /// What is nice to have.
    fn programs(&mut self, app: &App) {
        let path = app.environment.os("PATH").unwrap_or_default();
        let find = |name: &str| {
            std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| file.is_file())
        };
        match find("python3") {
            Some(python) => self.good("python", python.display().to_string()),
            None => self.add(
                "python",
                Verdict::Poor,
                "no python3 on the PATH",
                "install Python 3 with pip: by it `longhouse up` fetches the bus's server",
            ),
        }
        match find("nats") {
            Some(nats) => self.good("nats command", nats.display().to_string()),
            None => self.add(
                "nats command",
                Verdict::Poor,
                "not on the PATH; only needed to talk to the house without longhouse",
                "go install github.com/nats-io/natscli/nats@v0.4.0",
            ),
        }
        if let Ok(cache) = config::cache_folder() {
            self.good("cache", cache.display().to_string());
        }
    }
}

fn fix_for(error: &bus::Error, part: &str, dir: &Path) -> String {
    match error {
        bus::Error::Nobody { .. } => {
            format!(
                "`longhouse up --only {part}` starts one; logs are in {}",
                dir.join("logs").display()
            )
        }
        _ => format!(
            "it is there but does not answer as it should; see {}",
            dir.join("logs").display()
        ),
    }
}

fn quoted(path: &Path) -> String {
    crate::env::quoted(&path.display().to_string())
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { what, verdict, found, fix } in &self.checks {
            match verdict {
                Verdict::Good => write!(f, "{}", "ok  ".green())?,
                Verdict::Poor => write!(f, "{}", "note".yellow())?,
                Verdict::Bad => write!(f, "{}", "BAD ".red().bold())?,
            }
            writeln!(f, "  {what}: {found}")?;
            if let Some(fix) = fix {
                writeln!(f, "      {} {fix}", "→".dimmed())?;
            }
        }
        let bad = self.checks.iter().filter(|check| check.verdict == Verdict::Bad).count();
        match bad {
            0 => writeln!(f, "all is well"),
            bad => writeln!(f, "{} to mend", style::count(bad as u64, "thing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found<'a>(checks: &'a Checks, what: &str) -> &'a Check {
        checks.checks.iter().find(|check| check.what == what).unwrap()
    }

    #[test]
    fn keys_that_others_may_read_are_bad_and_the_fix_can_be_pasted() {
        let dir = tempfile::tempdir().unwrap();
        let creds = dir.path().join("owner.creds");
        std::fs::write(&creds, "secret").unwrap();
        std::fs::set_permissions(&creds, PermissionsExt::from_mode(0o644)).unwrap();
        let mut checks = Checks::default();
        checks.secrets(dir.path());
        let check = found(&checks, "credentials");
        assert_eq!(check.verdict, Verdict::Bad);
        let fix = check.fix.as_deref().unwrap();
        assert_eq!(fix, format!("chmod go-rwx {}", quoted(&creds)));

        std::fs::set_permissions(&creds, PermissionsExt::from_mode(0o600)).unwrap();
        let mut checks = Checks::default();
        checks.secrets(dir.path());
        assert_eq!(found(&checks, "credentials").verdict, Verdict::Good);
    }

    #[test]
    fn a_folder_that_is_not_there_is_bad_and_one_of_ours_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let mut checks = Checks::default();
        checks.folder(&dir.path().join("nothing"));
        assert_eq!(found(&checks, "folder").verdict, Verdict::Bad);
        let text = anstream::adapter::strip_str(&checks.to_string()).to_string();
        assert!(text.contains("BAD   folder: "), "{text}");
        assert!(text.ends_with("1 thing to mend\n"), "{text}");
        let mut checks = Checks::default();
        checks.folder(dir.path());
        assert_eq!(found(&checks, "folder").verdict, Verdict::Good);
    }
}
