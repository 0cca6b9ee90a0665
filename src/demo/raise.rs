//! Raises the demo's house: this program as processes of its own, in a temporary folder.

use crate::{
    app::App,
    config::{Config, Environment},
    connect, env,
    failure::{Failure, exit},
    terminal,
};
use anyhow::Context;
use bus::server::Paths;
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// How long a part may take until it is ready; the first time the bus's server is fetched.
const READY: Duration = Duration::from_secs(600);
/// How long the house may take to end.
const END: Duration = Duration::from_secs(20);
/// The nodes.
const NODES: [&str; 2] = ["hearth", "loft"];

/// The demo's house.
pub(super) struct Raised {
    /// As a client of that house is given it.
    pub(super) app: App,
    /// A folder that all its nodes see.
    pub(super) shared: PathBuf,
    temp: TempDir,
    program: PathBuf,
    processes: Vec<Child>,
}

impl Raised {
    pub(super) fn new(app: &App) -> anyhow::Result<Self> {
        let temp = tempfile::Builder::new().prefix("longhouse-demo-").tempdir()?;
        let dir = temp.path().join("house");
        let shared = temp.path().join("shared");
        std::fs::create_dir(&shared)?;
        let environment = app.environment.for_a_new_house();
        let config = Config::read(&dir, &environment, &[])?;
        let app = App { dir, config, environment, json: app.json, verbose: app.verbose };
        let program = std::env::current_exe().context("could not find this program's own file")?;
        Ok(Self { app, shared, temp, program, processes: Vec::new() })
    }

    /// Starts everything, and returns when it is ready.
    pub(super) async fn raise(&mut self) -> anyhow::Result<()> {
        let began = bus::clock::at();
        terminal::say(&format!("raising a house in {}", self.app.dir.display()));
        self.start(&["up", "--port", "0", "--only", "bus,manager,scheduler"]).await?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let lend = format!("cpus={}", cores.div_ceil(NODES.len()));
        for name in NODES {
            self.start(&["worker", "--name", name, "--lend", &lend]).await?;
        }
        let took = crate::style::span(bus::clock::at().since(began));
        terminal::say(&format!(
            "ready after {took}: bus, manager, scheduler, {}",
            NODES.join(" and ")
        ));
        Ok(())
    }

    async fn start(&mut self, args: &[&str]) -> anyhow::Result<()> {
        let mut child = command(&self.program, &self.app.dir, &self.app.environment)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the demo, which ends them in order.
            .process_group(0)
            .spawn()
            .context("could not start this program again")?;
        let stderr = child.stderr.take().expect("it is piped");
        let stdout = child.stdout.take().expect("it is piped");
        self.processes.push(child);
        let (said, mut is_ready) = (tokio::spawn(pass_on(stderr)), BufReader::new(stdout).lines());
        let ready = async {
            while let Ok(Some(line)) = is_ready.next_line().await {
                if line.starts_with("ready") {
                    return true;
                }
            }
            false
        };
        let shown = args.join(" ");
        match tokio::time::timeout(READY, ready).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let said = said.await.unwrap_or_default();
                let said = said.last().map_or("it said nothing", String::as_str);
                Err(Failure::new(exit::LOST, format!("`longhouse {shown}` ended: {said}")).into())
            }
            Err(_) => {
                let seconds = READY.as_secs();
                let message = format!("`longhouse {shown}` was not ready after {seconds} s");
                Err(Failure::new(exit::LOST, message).into())
            }
        }
    }

    /// Ends everything, and removes the folder.
    pub(super) async fn end(mut self) {
        self.end_processes().await;
    }

    /// Ends everything; the folder stays.
    pub(super) async fn end_and_keep(mut self) -> PathBuf {
        self.end_processes().await;
        self.temp.disable_cleanup(true);
        self.app.dir.join("logs")
    }

    async fn end_processes(&mut self) {
        let down = command(&self.program, &self.app.dir, &self.app.environment)
            .args(["down", "--now"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status();
        let _ = tokio::time::timeout(END, down).await;
        for mut process in self.processes.drain(..) {
            // Who has not ended by now is ended.
            if tokio::time::timeout(Duration::from_secs(2), process.wait()).await.is_err() {
                let _ = process.kill().await;
            }
        }
    }

    /// Leaves everything as it is; says how to talk to it.
    pub(super) fn keep(mut self) -> String {
        self.temp.disable_cleanup(true);
        how_to_talk(&self.app)
    }
}

/// This program, for the demo's house and in nobody else's.
fn command(program: &Path, dir: &Path, environment: &Environment) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(environment.all()).arg("--dir").arg(dir);
    command
}

/// What a part says goes on to our stderr until the demo ends; returned for who wants the last.
async fn pass_on(stderr: tokio::process::ChildStderr) -> Vec<String> {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = Vec::new();
    while let Ok(Some(line)) = lines.next_line().await {
        terminal::note(&line);
        last.push(line);
        if last.len() > 20 {
            last.remove(0);
        }
    }
    last
}

fn how_to_talk(app: &App) -> String {
    let dir = env::quoted(&app.dir.display().to_string());
    let door = connect::door(app);
    let url = door.as_ref().map_or(String::new(), |door| door.url.clone());
    let creds = door.ok().and_then(|door| door.creds).unwrap_or_default();
    let context = Paths::open(&app.dir).map(|paths| paths.context()).unwrap_or_default();
    let context = env::quoted(&context.display().to_string());
    let creds_text = creds.display();
    format!(
        "\nThe house is still up. Talk to it\n\
         \n  with longhouse:\n\
         \x20   export LONGHOUSE_DIR={dir}\n\
         \x20   longhouse run -- uname -a\n\
         \x20   longhouse results @last\n\
         \n  with nats:\n\
         \x20   nats --context {context} req lh.work.run '{{\"argv\":[\"uname\",\"-a\"]}}'\n\
         \x20   nats --context {context} micro ls\n\
         \n  with Python (pip install 'nats-py[nkeys]'):\n\
         \x20   import asyncio, json, nats\n\
         \x20   async def main():\n\
         \x20       bus = await nats.connect(\"{url}\", user_credentials=\"{creds_text}\")\n\
         \x20       body = json.dumps({{\"argv\": [\"uname\", \"-a\"]}}).encode()\n\
         \x20       answer = await bus.request(\"lh.work.run\", body, timeout=60)\n\
         \x20       print(json.loads(answer.data)[\"stdout\"])\n\
         \x20   asyncio.run(main())\n\
         \n  and end it:\n\
         \x20   longhouse --dir {dir} down --now"
    )
}
