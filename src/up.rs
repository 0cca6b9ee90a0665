//! `longhouse up`: raises the house on this machine.

use crate::{
    app::App,
    client::House,
    config::{self, Flag},
    connect,
    failure::{Failure, exit},
    life,
    report::Report,
    running::{self, OnInterrupt, Parts},
    terminal, worker,
};
use anyhow::Context;
use bus::{
    Bus,
    server::{FolderLock, Holder, Paths, Say, Search, Server, take_house},
};
use figment::value::Value;
use schemas::{
    node::NodeState,
    request::{List, Nodes, NodesReply, Works},
    token::NodeName,
};
use std::{ffi::OsString, path::Path, time::Duration};

/// Between two looks whether the house answers.
const LOOK: Duration = Duration::from_millis(10);
/// How long a part waits for the bus of its folder.
const BUS_PATIENCE: Duration = Duration::from_secs(60);
/// A house in less would refuse everything soon.
const SMALLEST_STORE_MIB: u64 = 64;
/// How long the parts may take until they answer.
const READY_PATIENCE: Duration = Duration::from_secs(120);

/// Raise the house on this machine: bus, manager, scheduler and a node
///
/// Prints one line `ready …` with the bus's address as soon as a first request would be answered.
/// Ctrl-C waits for the jobs that run here, a second one ends them; SIGTERM leaves them to their
/// keeper, which the next `up` in this folder takes up again.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Only these parts, into the house of the same folder; may be given more than once
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// The bus's port; 0 for any free one [default: as before, else 4222 or a free one]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Use this nats-server instead of looking for one
    #[arg(long, value_name = "PROGRAM", value_hint = clap::ValueHint::ExecutablePath)]
    nats_server: Option<String>,
    /// The node's name [default: the host's]
    #[arg(long)]
    name: Option<NodeName>,
    /// What the node lends, such as cpus=6,memory=24GiB,gpus=1 [default: what it has]
    #[arg(long, value_name = "AMOUNTS")]
    lend: Option<String>,
    /// Also keep the way in as a context of the `nats` command
    #[arg(long)]
    save_context: bool,
}

/// A part of a house.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// The message bus
    Bus,
    /// Accepts works and answers clients
    Manager,
    /// Gives jobs to nodes
    Scheduler,
    /// Runs jobs on this machine
    Worker,
}

const ALL: [Part; 4] = [Part::Bus, Part::Manager, Part::Scheduler, Part::Worker];

impl Up {
    pub(crate) fn log_name(&self) -> String {
        match self.only.as_slice() {
            [] => "up".to_owned(),
            parts => parts.iter().map(|part| part.word()).collect::<Vec<_>>().join("-"),
        }
    }

    pub(crate) fn flags(&self) -> Vec<Flag> {
        let mut out: Vec<Flag> = Vec::new();
        out.extend(self.port.map(|port| ("bus.port", Value::from(port))));
        out.extend(self.nats_server.as_ref().map(|p| ("bus.server", Value::from(p.as_str()))));
        out.extend(self.name.as_ref().map(|n| ("worker.name", Value::from(n.as_str()))));
        out.extend(self.lend.as_ref().map(|l| ("worker.lend", Value::from(l.as_str()))));
        out
    }

    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let only = if self.only.is_empty() { ALL.to_vec() } else { self.only.clone() };
        let has = |part| only.contains(&part);
        let paths = Paths::open(&app.dir)?;
        let mut parts = Parts::default();
        if has(Part::Bus) {
            match &app.settings().url {
                None => parts.server = Some(start_server(app, &paths).await?),
                Some(url) => terminal::say(&format!("using the bus at {url}, not one of our own")),
            }
        }
        let bus = connect_patiently(app, parts.server.as_ref().map(|(server, _)| server)).await?;
        if has(Part::Manager) {
            let server = parts.server.as_ref().map(|(server, _)| server);
            parts.manager = Some(start_manager(app, manager_settings(app, server)).await?);
        }
        if has(Part::Scheduler) {
            parts.scheduler = Some(start_scheduler(app).await?);
        }
        if has(Part::Worker) {
            parts.agent = Some(worker::start(app).await?);
        }
        let url = bus.url().to_owned();
        parts.bus = Some(bus.clone());
        if has(Part::Manager) || has(Part::Scheduler) || has(Part::Worker) {
            ready(app, bus, &parts).await?;
        }
        if self.save_context {
            save_context(app, &paths)?;
        }
        terminal::print(&format!("ready {url}\n"))?;
        running::until_ended(app, parts, OnInterrupt::WaitThenNow).await?;
        Ok(Report::nothing())
    }
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::Bus => "bus",
            Part::Manager => "manager",
            Part::Scheduler => "scheduler",
            Part::Worker => "worker",
        }
    }
}

/// Where a nats-server is looked for.
pub(crate) fn search(app: &App) -> anyhow::Result<Search> {
    Ok(Search {
        explicit: app.settings().bus.server.clone(),
        path: app.environment.os("PATH").map(OsString::from),
        home: app.environment.os("HOME").map(Into::into),
        cache: config::cache_folder()?,
    })
}

pub(crate) async fn start_server(app: &App, paths: &Paths) -> anyhow::Result<(Server, FolderLock)> {
    let say = Say::new(terminal::say);
    let holder = Holder::this_process("longhouse up", bus::clock::wall());
    let lock = {
        let (paths, say) = (paths.clone(), say.clone());
        tokio::task::spawn_blocking(move || take_house(&paths, &holder, &say)).await?
    };
    let lock = lock.map_err(|error| explained(&error, &app.dir))?;
    let mut settings =
        bus::server::Settings::new(paths.clone(), search(app)?, bus::clock::wall(), say);
    settings.port = app.settings().bus.port;
    let server =
        Server::start(settings, &lock).await.map_err(|error| explained(&error, &app.dir))?;
    Ok((server, lock))
}

fn explained(error: &bus::server::Error, dir: &Path) -> anyhow::Error {
    let failure = Failure::new(exit::NO_BUS, error.to_string());
    let hint = match error {
        bus::server::Error::Held { .. } => format!(
            "`longhouse --dir {} down` ends it; another house needs another folder (`--dir`)",
            crate::env::quoted(&dir.display().to_string())
        ),
        bus::server::Error::PortTaken { .. } => {
            "end that program, or say `--port 0` to move this house to a free port".to_owned()
        }
        bus::server::Error::CannotFetch(_) => return failure.into(),
        _ => format!("the bus's own log is {}", dir.join("logs/bus.log").display()),
    };
    failure.hint(hint).into()
}

/// The bus may be started by another process at the same moment.
async fn connect_patiently(app: &App, own: Option<&Server>) -> anyhow::Result<Bus> {
    let patience = if own.is_some() { Duration::ZERO } else { BUS_PATIENCE };
    let began = bus::clock::at();
    let mut said = false;
    loop {
        let error = match connect::part(app, "up").await {
            Ok(bus) => return Ok(bus),
            Err(error) => error,
        };
        let waited = Duration::from_millis(bus::clock::at().since(began));
        if waited >= patience || Failure::of(&error).code != exit::NO_BUS {
            return Err(error);
        }
        if !said {
            let whose = match &app.settings().url {
                Some(url) => format!("at {url}"),
                None => format!("of {}", app.dir.display()),
            };
            terminal::say(&format!("waiting for the bus {whose}…"));
            said = true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A manager shares out the store of the bus beside it, of which it knows the size.
pub(crate) fn manager_settings(app: &App, server: Option<&Server>) -> actors::manager::Settings {
    let mut settings = app.settings().manager.clone();
    // The streams reserve shares of what the bus may store; the bus of this folder may run in
    // another process.
    let kept = || {
        let paths = Paths::open(&app.dir).ok().filter(|_| app.settings().url.is_none())?;
        std::fs::read_to_string(paths.max_file_store()).ok()?.trim().parse().ok()
    };
    let store_bytes: Option<u64> =
        server.map(|server| server.details().max_file_store_bytes).or_else(kept);
    if let Some(store_bytes) = store_bytes {
        settings.store_mib = store_bytes / (1024 * 1024);
    }
    settings
}

pub(crate) async fn start_scheduler(app: &App) -> anyhow::Result<actors::scheduler::Handle> {
    let (pool, settings) = (app.settings().pool.clone(), app.settings().scheduler.clone());
    let own = connect::part(app, "scheduler").await?;
    let started = actors::scheduler::start(own, pool, settings, life::process()).await;
    started.context("could not start the scheduler")
}

pub(crate) async fn start_manager(
    app: &App,
    mut settings: actors::manager::Settings,
) -> anyhow::Result<actors::manager::Handle> {
    let own = connect::part(app, "manager").await?;
    let said = app.config.origins.get("manager.store_mib");
    let may_shrink = said.is_none_or(|(_, origin)| origin == "default");
    let wanted_mib = settings.store_mib;
    loop {
        let started = actors::manager::start(own.clone(), settings.clone()).await;
        let error = match started.context("could not start the manager") {
            Ok(manager) => {
                if settings.store_mib < wanted_mib {
                    terminal::say(&format!(
                        "the bus may store less than {wanted_mib} MiB: {} MiB are shared out",
                        settings.store_mib
                    ));
                }
                return Ok(manager);
            }
            Err(error) => error,
        };
        if !format!("{error:#}").contains("insufficient storage") {
            return Err(error);
        }
        // A bus does not tell how much it may store.
        settings.store_mib /= 2;
        if !may_shrink || settings.store_mib < SMALLEST_STORE_MIB {
            let message = format!(
                "the bus may store less than the {wanted_mib} MiB that are to be shared out"
            );
            let hint =
                "say less: `manager.store_mib` in config.toml, or LONGHOUSE_MANAGER__STORE_MIB";
            return Err(Failure::new(exit::REFUSED, message).hint(hint).into());
        }
    }
}

/// Returns when a first request would be answered by each part that runs here.
async fn ready(app: &App, bus: Bus, parts: &Parts) -> anyhow::Result<()> {
    let house = House::new(bus, app.settings().pool.clone());
    let began = bus::clock::at();
    let mut last = String::new();
    while bus::clock::at().since(began) < READY_PATIENCE.as_millis() as u64 {
        match answers(&house, parts).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => last = missing,
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(LOOK).await;
    }
    let hint = format!("the logs are in {}", app.dir.join("logs").display());
    let message = format!("the house did not answer within {} s: {last}", READY_PATIENCE.as_secs());
    Err(Failure::new(exit::LOST, message).hint(hint).into())
}

/// What does not answer yet, in words.
async fn answers(house: &House, parts: &Parts) -> Result<Option<String>, bus::Error> {
    if parts.manager.is_some() {
        let list = List { limit: Some(1), ..List::default() };
        let _: Works = house.work("list", &list).await?;
    }
    if parts.scheduler.is_none() && parts.agent.is_none() {
        return Ok(None);
    }
    let known: NodesReply = match house.sched("nodes", &Nodes {}).await {
        Ok(known) => known,
        // A node may be up before its scheduler; it is ready in its own right.
        Err(bus::Error::Nobody { .. }) if parts.scheduler.is_none() => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(agent) = &parts.agent else { return Ok(None) };
    let node = known.nodes.iter().find(|node| node.node == *agent.node());
    Ok(match node.map(|node| node.state) {
        Some(NodeState::Ready | NodeState::Drained) => None,
        Some(state) => Some(format!("the node {} is {}", agent.node(), state.as_str())),
        None => Some(format!("the scheduler has not heard of the node {}", agent.node())),
    })
}

/// Waits until the node of this process may be given jobs.
pub(crate) async fn node_ready(app: &App, bus: Bus, agent: &workers::Agent) -> anyhow::Result<()> {
    let house = House::new(bus, app.settings().pool.clone());
    let mut said = false;
    loop {
        let known: Result<NodesReply, bus::Error> = house.sched("nodes", &Nodes {}).await;
        let why = match known {
            Ok(known) => match known.nodes.iter().find(|node| node.node == *agent.node()) {
                Some(node) if matches!(node.state, NodeState::Ready | NodeState::Drained) => {
                    return Ok(());
                }
                _ => None,
            },
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why
            && !said
        {
            terminal::say(&format!("waiting for a scheduler: {why}"));
            said = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Copies `DIR/nats.json` among the user's own contexts, never over a file that is not ours.
fn save_context(app: &App, paths: &Paths) -> anyhow::Result<()> {
    let from = paths.context();
    let folder = config::user_config_folder()?.join("nats").join("context");
    let to = folder.join("longhouse.json");
    let doing = || format!("could not save the context `{}`", to.display());
    let text = std::fs::read(&from).with_context(doing)?;
    if let Ok(there) = std::fs::read_to_string(&to)
        && !there.contains(&app.dir.display().to_string())
    {
        return Err(Failure::new(
            exit::FAILED,
            format!("`{}` is there and was not written by this house", to.display()),
        )
        .hint(format!("use it where it is: `nats --context {} …`", from.display()))
        .into());
    }
    std::fs::create_dir_all(&folder).with_context(doing)?;
    let mut file = tempfile::NamedTempFile::new_in(&folder).with_context(doing)?;
    std::io::Write::write_all(&mut file, &text).with_context(doing)?;
    file.persist(&to).with_context(doing)?;
    terminal::say(&format!(
        "saved as the context `longhouse`: `nats --context longhouse …` ({})",
        to.display()
    ));
    Ok(())
}

/// The small process between a house and its bus's server
#[derive(Debug, clap::Args)]
pub(crate) struct BusShim {
    /// For `bus::server` alone
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl BusShim {
    pub(crate) fn run(self) -> std::process::ExitCode {
        let code = bus::server::shim_main(&self.arguments);
        u8::try_from(code).unwrap_or(u8::MAX).into()
    }
}
