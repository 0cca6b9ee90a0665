//! The node agent: a node's voice on the bus. What it hears it hands to the keeper, what the keeper says it
//! carries to the house; it decides nothing about jobs.
//!
//! Four tasks: [`ears`] (requests and their answers, the keeper's words), [`beats`], [`reports`] and
//! [`frames`]. Nothing in it grows: reports and frames are bounded by the keeper's windows and by what is kept of
//! them until it is settled, requests by the subscription.

mod beats;
mod ears;
mod frames;
mod inventory;
mod keeper;
mod lend;
mod reports;

pub use inventory::look;
pub use lend::{Lend, LendError};

use crate::protocol::{Hello, PROTOCOL, State, ToKeeper};
use bus::{
    Bus,
    server::{FolderLock, Holder},
};
use schemas::{
    amount::Room,
    id::InstanceId,
    node::Inventory,
    time::{Seconds, Stamp},
    token::{NodeName, PoolName, SiteName, tokenize},
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

/// Names that are tried after the host's own: `-2` to this.
const MOST_NAMES: u32 = 99;
/// How long a leaving node waits for answers to its last reports.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// How long a keeper may take for its last words.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The house's folder; the node's is `nodes/<name>` in it.
    pub dir: PathBuf,
    /// The node's name; by default the host's up to the first dot, with `-2` … where that is taken.
    pub name: Option<NodeName>,
    /// The host's name.
    pub host: String,
    /// The LAN it is in.
    pub site: Option<SiteName>,
    /// The pool that it serves.
    pub pool: PoolName,
    /// What it lends.
    pub lend: Lend,
    /// The environment of this process, of which jobs get a few variables.
    pub env: BTreeMap<String, String>,
    /// The program that has the keeper in it, …
    pub keeper_program: PathBuf,
    /// … and the arguments that lead there; the node's folder follows.
    pub keeper_args: Vec<OsString>,
    /// As what this process was started, for those whom the folder's lock turns away.
    pub command: String,
    /// Between beats.
    pub beat: Duration,
    /// From TERM to KILL.
    pub grace: Duration,
    /// The shortest lease of a job without a worker.
    pub lost_after: Duration,
    /// How long a job under `wait` waits for a reader.
    pub reader_after: Duration,
    /// What the bus has stored it may forget for so long, when its power fails: until it was heard
    /// after that, what was answered is kept, to be said again.
    pub settled_after: Duration,
}

impl Settings {
    /// The usual ones.
    pub fn new(dir: PathBuf, host: String, keeper_program: PathBuf) -> Self {
        Self {
            dir,
            name: None,
            host,
            site: None,
            pool: PoolName::main(),
            lend: Lend::default(),
            env: BTreeMap::new(),
            keeper_program,
            keeper_args: vec!["keeper".into()],
            command: "longhouse worker".to_owned(),
            beat: Duration::from_secs(2),
            grace: Duration::from_secs(5),
            lost_after: Duration::from_secs(30),
            reader_after: Duration::from_secs(30),
            settled_after: Duration::from_secs(3),
        }
    }
}

/// Why a node could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder is another's, or cannot be had.
    #[error(transparent)]
    Folder(#[from] bus::server::Error),
    /// Every name is taken.
    #[error("`{0}` to `{0}-{MOST_NAMES}` are all in use in this folder")]
    Names(String),
    /// The keeper could not be started or reached.
    #[error("no keeper in `{}`: {why}", folder.display())]
    Keeper {
        /// In which folder.
        folder: PathBuf,
        /// Why, in one sentence.
        why: String,
    },
    /// The bus.
    #[error("the bus")]
    Bus(#[from] bus::Error),
}

/// What a node's keeper holds, for messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// Jobs that run.
    pub running: u64,
    /// Jobs that wait there for room.
    pub queued: u64,
    /// Jobs that have ended and whose report nobody has answered.
    pub unanswered: u64,
    /// Without a worker, the first job is ended after so long, …
    pub first_lost_after: Option<Seconds>,
    /// … and the last after so long.
    pub last_lost_after: Option<Seconds>,
}

impl Held {
    fn of(state: &State) -> Self {
        Self {
            running: state.digest.running,
            queued: state.digest.queued,
            unanswered: state.digest.unanswered,
            first_lost_after: state.first_lost_after,
            last_lost_after: state.last_lost_after,
        }
    }
}

/// The keeper as it is now: another after it has died.
#[derive(Clone, Debug)]
struct Keeper {
    instance: InstanceId,
    since: Stamp,
    state: State,
    /// It has ended in order.
    left: bool,
}

/// What all tasks of an agent share.
struct Shared {
    bus: Bus,
    node: NodeName,
    folder: PathBuf,
    settings: Settings,
    lent: Room,
    inventory: watch::Sender<Arc<Inventory>>,
    keeper: watch::Sender<Keeper>,
    to_keeper: mpsc::Sender<ToKeeper>,
    /// A beat is due at once.
    beat_now: Notify,
    /// A scheduler has asked something, so it will hear a report, too.
    report_now: Notify,
    /// A scheduler has spoken to this instance.
    ready: watch::Sender<bool>,
    refused: AtomicU64,
}

impl Shared {
    /// Says something to the keeper; without a keeper it is not needed any more.
    async fn tell(&self, message: ToKeeper) {
        let _ = self.to_keeper.send(message).await;
    }
}

/// A node that is up.
pub struct Agent {
    shared: Arc<Shared>,
    note: Option<String>,
    tasks: JoinSet<()>,
    _lock: FolderLock,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Agent({})", self.shared.node)
    }
}

/// Takes the node's folder, starts or finds its keeper, and begins to speak on the bus.
pub async fn start(bus: Bus, settings: Settings) -> Result<Agent, Error> {
    let (node, folder, lock, note) = take_name(&settings)?;
    let inventory = {
        let (host, folder) = (settings.host.clone(), folder.clone());
        let look = tokio::task::spawn_blocking(move || inventory::look(&host, &folder));
        look.await.unwrap_or_default()
    };
    let (lend, cards) = settings.lend.of(&inventory);
    let inventory = Inventory { cards: cards.clone(), ..inventory };
    let ms = |d: Duration| Seconds::from_ms(u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let hello = Hello {
        protocol: PROTOCOL,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.clone(),
        lend,
        cards,
        env: settings.env.clone(),
        grace: ms(settings.grace),
        lost_after: ms(settings.lost_after),
        reader_after: ms(settings.reader_after),
    };
    let found = keeper::find_or_start(&settings, &folder, &hello).await?;
    let (to_keeper, from_agent) = mpsc::channel(256);
    // A keeper that was asked before goes on; a new one waits for its scheduler.
    let known = !found.started && found.keeper.state.highest.epoch > 0;
    let shared = Arc::new(Shared {
        bus: bus.clone(),
        node: node.clone(),
        folder,
        settings,
        lent: hello.lend.clone(),
        inventory: watch::channel(Arc::new(inventory)).0,
        keeper: watch::channel(found.keeper.clone()).0,
        to_keeper,
        beat_now: Notify::new(),
        report_now: Notify::new(),
        ready: watch::channel(known).0,
        refused: AtomicU64::new(0),
    });
    let bulk = bus.bulk().await?;
    let hearing = ears::listen(&shared).await?;
    let (report, reports) = mpsc::unbounded_channel();
    let (frame, frames) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let words = ears::Words { report, frame };
    tasks.spawn(ears::run(shared.clone(), hello, found, from_agent, hearing, words));
    tasks.spawn(beats::run(shared.clone()));
    tasks.spawn(reports::run(shared.clone(), reports));
    tasks.spawn(frames::run(shared.clone(), bulk, frames));
    bus.flush().await?;
    Ok(Agent { shared, note, tasks, _lock: lock })
}

type Place = (NodeName, PathBuf, FolderLock, Option<String>);

fn take_name(settings: &Settings) -> Result<Place, Error> {
    let now = bus::clock::wall();
    let take = |name: &str| {
        let folder = settings.dir.join("nodes").join(name);
        let holder = Holder::this_process(settings.command.clone(), now);
        FolderLock::take(&folder, &holder).map(|lock| (folder, lock))
    };
    if let Some(name) = &settings.name {
        let (folder, lock) = take(name.as_str())?;
        restrict(&folder);
        return Ok((name.clone(), folder, lock, None));
    }
    let host = settings.host.split('.').next().unwrap_or_default();
    let plain = tokenize(host).unwrap_or_else(|| "node".to_owned());
    for n in 1..=MOST_NAMES {
        let name = match n {
            1 => plain.clone(),
            n => format!("{}-{n}", &plain[..plain.len().min(32)]),
        };
        // The host's name may be one that is reserved or no token with its ending.
        let Ok(token) = NodeName::new(&name) else { continue };
        match take(&name) {
            Ok((folder, lock)) => {
                restrict(&folder);
                let note = (n > 1).then(|| {
                    format!("`{plain}` is in use in this folder, so this node is `{name}`")
                });
                return Ok((token, folder, lock, note));
            }
            Err(bus::server::Error::Held { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Names(plain))
}

/// The folder is its owner's alone: jobs' input and output pass through it.
fn restrict(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700));
}

impl Agent {
    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.shared.node
    }

    /// What should be said about the name, where it is not the expected one.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Which life of the keeper is attached now.
    pub fn instance(&self) -> InstanceId {
        self.shared.keeper.borrow().instance
    }

    /// What runs and waits there.
    pub fn held(&self) -> Held {
        Held::of(&self.shared.keeper.borrow().state)
    }

    /// How many requests were refused: malformed, late, or meant for another.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Waits until a scheduler has spoken to this node, so that jobs can be placed here.
    pub async fn ready(&self) {
        let mut ready = self.shared.ready.subscribe();
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Waits until it has ended by itself: one of its tasks has failed, or its keeper was told to
    /// leave by an earlier worker and has done so.
    pub async fn ended(&mut self) {
        if let Some(Err(error)) = self.tasks.join_next().await {
            tracing::error!(%error, node = %self.shared.node, "a task of the node has failed");
        }
    }

    /// The worker goes; the keeper and the jobs stay. Says what they are and until when they wait.
    pub async fn detach(mut self) -> Held {
        let held = self.held();
        // Answers that are on their way to the bus are still said.
        let _ = self.shared.bus.flush().await;
        self.tasks.shutdown().await;
        held
    }

    /// The node leaves: it takes no more jobs, waits for those that run (or ends them and reports them
    /// lost), says goodbye, and its keeper ends. What could not be reported stays on the disk for the next.
    pub async fn leave(mut self, now: bool) {
        self.shared.tell(ToKeeper::Leave { now }).await;
        let mut keeper = self.shared.keeper.subscribe();
        let idle = |k: &Keeper| {
            k.left || k.state.leaving && k.state.digest.running + k.state.digest.queued == 0
        };
        let _ = keeper.wait_for(idle).await;
        let left = keeper.wait_for(|k| k.left);
        if tokio::time::timeout(LAST_ANSWERS, left).await.is_err() {
            tracing::warn!("the last reports are not answered; they are kept for the next worker");
            self.shared.tell(ToKeeper::Exit).await;
            let _ = tokio::time::timeout(LAST_WORDS, keeper.wait_for(|k| k.left)).await;
        }
        self.tasks.shutdown().await;
        beats::say(&self.shared, true).await;
        let _ = self.shared.bus.flush().await;
    }

    /// Ends the jobs that [`Agent::leave`] waits for, when it is awaited; taken before that call.
    pub fn hurry(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = self.shared.clone();
        async move { shared.tell(ToKeeper::Leave { now: true }).await }
    }
}
