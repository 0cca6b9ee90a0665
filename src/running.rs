//! What one long-lived process runs of a house: its parts, how it is told to end, how it ends.
//!
//! Each such process leaves a note and a socket in `DIR/run/`, by which `longhouse down` finds it.
//! Parts end in one order over all processes of the folder: nodes, then manager and scheduler,
//! then the bus.

use crate::{
    app::App,
    failure::Failure,
    style, terminal,
    watchdog::{Begun, Watchdog, Which},
};
use anyhow::Context;
use bus::{
    Bus,
    server::{FolderLock, Server},
};
use schemas::token::NodeName;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// What becomes of the jobs of a node that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// They are waited for.
    Wait,
    /// They are ended.
    Now,
    /// They are left to their keeper.
    Detach,
}

/// Which parts are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layer {
    /// The node.
    Worker,
    /// Manager and scheduler.
    Actors,
    /// The bus.
    Bus,
}

/// The order in which a house ends.
pub(crate) const LAYERS: [Layer; 3] = [Layer::Worker, Layer::Actors, Layer::Bus];

/// The parts of a house that run in this process.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) agent: Option<workers::Agent>,
    pub(crate) scheduler: Option<actors::scheduler::Handle>,
    pub(crate) manager: Option<actors::manager::Handle>,
    pub(crate) bus: Option<Bus>,
    pub(crate) server: Option<(Server, FolderLock)>,
    pub(crate) watchdog: Watchdog,
}

impl Parts {
    /// What runs here, in words.
    fn words(&self) -> String {
        let mut out = Vec::new();
        if self.server.is_some() {
            out.push("bus".to_owned());
        }
        if self.manager.is_some() {
            out.push("manager".to_owned());
        }
        if self.scheduler.is_some() {
            out.push("scheduler".to_owned());
        }
        if let Some(agent) = &self.agent {
            out.push(format!("node {}", agent.node()));
        }
        out.join(", ")
    }

    fn is_empty(&self) -> bool {
        self.agent.is_none()
            && self.scheduler.is_none()
            && self.manager.is_none()
            && self.server.is_none()
            && self.watchdog.is_idle()
    }

    /// Waits until one of the parts has ended by itself, and takes it out, or is up again, and puts
    /// it in; says which has ended.
    async fn changed(&mut self) -> Option<Which> {
        let Parts { agent, scheduler, manager, server, watchdog, .. } = self;
        let node = async {
            match agent {
                Some(agent) => agent.ended().await,
                None => std::future::pending().await,
            }
        };
        let scheduling = async {
            match scheduler {
                Some(scheduler) => scheduler.ended().await,
                None => std::future::pending().await,
            }
        };
        let managing = async {
            match manager {
                Some(manager) => manager.ended().await,
                None => std::future::pending().await,
            }
        };
        let serving = async {
            match server {
                // It starts a server that dies again by itself, for ever.
                Some((server, _)) => {
                    let mut state = server.state();
                    while state.changed().await.is_ok() {}
                }
                None => std::future::pending().await,
            }
        };
        let which = tokio::select! {
            () = node => Which::Node,
            () = scheduling => Which::Scheduler,
            () = managing => Which::Manager,
            () = serving => Which::Bus,
            begun = watchdog.next() => {
                match begun {
                    Begun::Node(agent) => self.agent = Some(*agent),
                    Begun::Scheduler(scheduler) => self.scheduler = Some(scheduler),
                    Begun::Manager(manager) => self.manager = Some(manager),
                    Begun::Bus(server) => self.server = Some(*server),
                }
                return None;
            }
        };
        match which {
            Which::Node => self.agent = None,
            Which::Scheduler => self.scheduler = None,
            Which::Manager => self.manager = None,
            Which::Bus => self.server = None,
        }
        Some(which)
    }

    async fn end_actors(&mut self) {
        self.watchdog.forget(&[Which::Scheduler, Which::Manager]);
        // The manager last: it answers those who wait with what the scheduler still stored.
        if let Some(scheduler) = self.scheduler.take() {
            scheduler.stop().await;
        }
        if let Some(manager) = self.manager.take() {
            manager.stop().await;
        }
    }

    async fn end_bus(&mut self) -> anyhow::Result<()> {
        self.watchdog.forget(&[Which::Bus]);
        if let Some(bus) = self.bus.take() {
            bus.close().await;
        }
        if let Some((server, lock)) = self.server.take() {
            server.stop().await?;
            drop(lock);
        }
        Ok(())
    }
}

/// The note by which `down` finds a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The process.
    pub(crate) pid: u32,
    /// What it runs, in words.
    pub(crate) parts: String,
    /// Its socket.
    pub(crate) socket: PathBuf,
}

/// What `down` says to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    end: Layer,
    how: How,
}

/// What a process answers, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// Something a person may want to know.
    Say(String),
    /// That layer has ended here.
    Done,
    /// It could not be ended.
    Failed(String),
}

/// The folder of notes and sockets.
fn folder(dir: &Path) -> PathBuf {
    dir.join("run")
}

/// Makes this process findable for as long as the value lives.
struct Findable {
    note: PathBuf,
    socket: PathBuf,
    listener: Option<UnixListener>,
}

impl Findable {
    fn new(dir: &Path, parts: String) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = folder(dir);
        let doing = || format!("could not use `{}`", folder.display());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(doing)?;
        let pid = std::process::id();
        let socket = folder.join(format!("{pid}.sock"));
        let note = folder.join(format!("{pid}.json"));
        // Left over from an earlier process with this number.
        let _ = std::fs::remove_file(&socket);
        let listener = workers::listen(&socket).with_context(doing)?;
        listener.set_nonblocking(true).with_context(doing)?;
        let listener = UnixListener::from_std(listener).with_context(doing)?;
        let text = serde_json::to_vec(&Note { pid, parts, socket: socket.clone() })?;
        std::fs::write(&note, text).with_context(doing)?;
        Ok(Self { note, socket, listener: Some(listener) })
    }
}

impl Drop for Findable {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.note);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What Ctrl-C means to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// The first waits for the jobs, a second ends them.
    WaitThenNow,
    /// The jobs live on with their keeper.
    Detach,
}

type Told = (End, mpsc::UnboundedSender<Word>);

/// Runs until everything has ended; a part that ends by itself is started again. SIGTERM detaches.
pub(crate) async fn until_ended(
    app: &App,
    mut parts: Parts,
    on_interrupt: OnInterrupt,
) -> anyhow::Result<()> {
    let mut findable = Findable::new(&app.dir, parts.words())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (tell, mut told) = mpsc::channel::<Told>(8);
    // By itself, so that a second `down` is heard while the first one waits.
    let ear = tokio::spawn(accept(findable.listener.take(), tell.clone()));
    while !parts.is_empty() {
        tokio::select! {
            Some((end, words)) = told.recv() => {
                let say = |text: &str| { let _ = words.send(Word::Say(text.to_owned())); };
                let ended = end_layer(&mut parts, end, Asker::Down(&say), &mut interrupt, &mut told).await;
                let _ = words.send(match ended {
                    Ok(()) => Word::Done,
                    Err(error) => Word::Failed(format!("{error:#}")),
                });
            }
            ended = parts.changed() => if let Some(which) = ended {
                let server = parts.server.as_ref().map(|(server, _)| server);
                parts.watchdog.start_again(app, which, server);
            },
            _ = interrupt.recv() => {
                let how = match on_interrupt {
                    OnInterrupt::WaitThenNow => How::Wait,
                    OnInterrupt::Detach => How::Detach,
                };
                end_all(&mut parts, how, &mut interrupt, &mut told).await?;
            }
            _ = terminate.recv() => {
                end_all(&mut parts, How::Detach, &mut interrupt, &mut told).await?;
            }
            _ = hangup.recv() => {
                end_all(&mut parts, How::Detach, &mut interrupt, &mut told).await?;
            }
        }
    }
    ear.abort();
    let _ = ear.await;
    // `down` reads the last words of a process that is about to go.
    tokio::time::timeout(Duration::from_secs(1), tell.closed_soon()).await.ok();
    Ok(())
}

trait ClosedSoon {
    fn closed_soon(&self) -> impl Future<Output = ()>;
}

impl ClosedSoon for mpsc::Sender<Told> {
    /// Until no connection holds a sender but ours.
    async fn closed_soon(&self) {
        while self.strong_count() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Who wants something to end, and hears what is said about it.
#[derive(Clone, Copy)]
enum Asker<'a> {
    /// A `down`, in another process.
    Down(&'a dyn Fn(&str)),
    /// A signal to this process.
    Signal,
}

impl Asker<'_> {
    fn say(self, sentence: &str) {
        match self {
            Asker::Down(say) => say(sentence),
            Asker::Signal => terminal::say(sentence),
        }
    }

    /// What to do instead of waiting.
    fn ways_out(self) -> &'static str {
        match self {
            Asker::Down(_) => "`longhouse down --now` ends them",
            Asker::Signal => "Ctrl-C or `longhouse down --now` ends them",
        }
    }
}

async fn end_all(
    parts: &mut Parts,
    how: How,
    interrupt: &mut tokio::signal::unix::Signal,
    told: &mut mpsc::Receiver<Told>,
) -> anyhow::Result<()> {
    for end in LAYERS {
        end_layer(parts, End { end, how }, Asker::Signal, interrupt, told).await?;
    }
    Ok(())
}

async fn end_layer(
    parts: &mut Parts,
    end: End,
    asker: Asker<'_>,
    interrupt: &mut tokio::signal::unix::Signal,
    told: &mut mpsc::Receiver<Told>,
) -> anyhow::Result<()> {
    match end.end {
        Layer::Worker => {
            parts.watchdog.forget(&[Which::Node]);
            if let Some(agent) = parts.agent.take() {
                end_worker(agent, end.how, asker, interrupt, told).await;
            }
            Ok(())
        }
        Layer::Actors => {
            parts.end_actors().await;
            Ok(())
        }
        Layer::Bus => parts.end_bus().await,
    }
}

async fn end_worker(
    agent: workers::Agent,
    how: How,
    asker: Asker<'_>,
    interrupt: &mut tokio::signal::unix::Signal,
    told: &mut mpsc::Receiver<Told>,
) {
    let name = agent.node().clone();
    let held = agent.held();
    let jobs = held.running + held.queued;
    match how {
        How::Detach => {
            let held = agent.detach().await;
            if held.running + held.queued > 0 {
                asker.say(&format!("node {name}: {}", live(&held)));
            }
        }
        How::Now => {
            if jobs > 0 {
                asker.say(&ending(&name, jobs));
            }
            agent.leave(true).await;
        }
        How::Wait => {
            if jobs > 0 {
                let (jobs, ways_out) = (style::count(jobs, "job"), asker.ways_out());
                asker.say(&format!("node {name}: waiting for {jobs}; {ways_out}"));
            }
            let mut hurry = Some(agent.hurry());
            let mut leave = std::pin::pin!(agent.leave(false));
            // Others who want the same, or sooner, while this one waits.
            let mut others = Vec::new();
            loop {
                let now = tokio::select! {
                    () = &mut leave => break,
                    _ = interrupt.recv() => true,
                    Some((end, words)) = told.recv() => {
                        others.push(words);
                        end.how == How::Now
                    }
                };
                if now && let Some(hurry) = hurry.take() {
                    asker.say(&ending(&name, jobs));
                    hurry.await;
                }
            }
            for words in others {
                let _ = words.send(Word::Done);
            }
        }
    }
}

/// That jobs are ended, which is not the end of their works.
fn ending(name: &NodeName, jobs: u64) -> String {
    format!(
        "node {name}: ending {}; their works go on elsewhere, or at the next start \
         (`longhouse cancel WORK` ends one for good)",
        style::count(jobs, "job")
    )
}

/// That jobs live on, and until when.
fn live(held: &workers::Held) -> String {
    let jobs = held.running + held.queued;
    let verb = if jobs == 1 { "lives" } else { "live" };
    let until = match (held.first_lost_after, held.last_lost_after) {
        (Some(first), Some(last)) if first == last => style::span(first.ms),
        (Some(first), Some(last)) => {
            format!("{} to {}", style::span(first.ms), style::span(last.ms))
        }
        _ => "a while".to_owned(),
    };
    format!(
        "{} {verb} on with the keeper, for {until} without a worker; the next `up` or `worker` takes them up",
        style::count(jobs, "job")
    )
}

async fn accept(listener: Option<UnixListener>, tell: mpsc::Sender<Told>) {
    let Some(listener) = listener else { return };
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(listen(stream, tell.clone()));
    }
}

/// One connection of a `down`.
async fn listen(stream: UnixStream, tell: mpsc::Sender<Told>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(end) = serde_json::from_str::<End>(&line) else { return };
        let (words, mut said) = mpsc::unbounded_channel();
        if tell.send((end, words)).await.is_err() {
            return;
        }
        while let Some(word) = said.recv().await {
            let mut line = serde_json::to_vec(&word).expect("words are text");
            line.push(b'\n');
            if write.write_all(&line).await.is_err() {
                return;
            }
        }
    }
}

/// The processes of a folder that can be found; notes of those that are gone are removed.
pub(crate) fn found(dir: &Path) -> Vec<Note> {
    let Ok(entries) = std::fs::read_dir(folder(dir)) else { return Vec::new() };
    let mut out = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Some(note) =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok())
        else {
            continue;
        };
        if workers::dial(&note.socket).is_ok() {
            out.push(note);
        } else {
            let _ = std::fs::remove_file(&note.socket);
            let _ = std::fs::remove_file(&path);
        }
    }
    out.sort_by_key(|note| note.pid);
    out
}

/// Ends one layer in a process; what it says on the way goes to `say`.
pub(crate) async fn end_in(
    note: &Note,
    end: Layer,
    how: How,
    say: &dyn Fn(&str),
) -> anyhow::Result<()> {
    let gone = || format!("process {} ({}) does not listen", note.pid, note.parts);
    let Ok(stream) = workers::dial(&note.socket) else { return Ok(()) };
    stream.set_nonblocking(true).with_context(gone)?;
    let stream = UnixStream::from_std(stream).with_context(gone)?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(&End { end, how })?;
    line.push(b'\n');
    // A process that ends at this very moment closes the connection: what it had has ended with it.
    let ended = |error: &std::io::Error| {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        matches!(error.kind(), BrokenPipe | ConnectionReset)
    };
    match write.write_all(&line).await {
        Err(error) if ended(&error) => return Ok(()),
        written => written.with_context(gone)?,
    }
    let mut lines = BufReader::new(read).lines();
    loop {
        let line = match lines.next_line().await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) if ended(&error) => break,
            Err(error) => return Err(error).with_context(gone),
        };
        match serde_json::from_str(&line) {
            Ok(Word::Say(text)) => say(&text),
            Ok(Word::Done) => return Ok(()),
            Ok(Word::Failed(why)) => {
                return Err(Failure::new(1, format!("process {}: {why}", note.pid)).into());
            }
            Err(_) => continue,
        }
    }
    Ok(())
}
