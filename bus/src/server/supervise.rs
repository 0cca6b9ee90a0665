//! Keeps the server up: starts it, waits until JetStream answers, starts it again when it dies, ends it with us.

use super::{
    Error, FolderLock, Found, Keys, Paths, Say, Search,
    config::{self, Config, Port},
    fetch, paths, private_folder, process, shim,
};
use schemas::time::Stamp;
use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    process::{Child, ChildStdin, Command},
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Who has stayed up this long is well again, and the next restart is as quick as the first.
const STEADY: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(2);
const TAIL_BYTES: u64 = 2048;
const LAST_WORDS_BYTES: u64 = 1 << 20;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the house's files lie.
    pub paths: Paths,
    /// Where to look for the server's program.
    pub search: Search,
    /// The port asked for: none means the kept or the usual one, 0 the kept or any free one.
    pub port: Option<u16>,
    /// The program that becomes the shim under the name [`shim::NAME`]; by default this very program.
    pub shim: Option<PathBuf>,
    /// How long the server may take until it answers. Recovering many large streams takes a while.
    pub ready_timeout: Duration,
    /// How long it may take to end before it is killed.
    pub stop_grace: Duration,
    /// The time of the start; it stands in tokens that are made now.
    pub now: Stamp,
    /// Where sentences about progress go.
    pub say: Say,
}

impl Settings {
    /// The usual settings.
    pub fn new(paths: Paths, search: Search, now: Stamp, say: Say) -> Settings {
        Settings {
            paths,
            search,
            port: None,
            shim: None,
            ready_timeout: Duration::from_secs(120),
            stop_grace: Duration::from_secs(10),
            now,
            say,
        }
    }
}

/// How the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Ready {
        /// Its process.
        pid: u32,
        /// How often it was started again before.
        restarts: u32,
    },
    /// It has died and is being started again.
    Restarting {
        /// How it ended, or why it did not start.
        reason: String,
    },
    /// It was ended by us.
    Stopped,
}

/// What `doctor` shows of a running server.
#[derive(Clone, Debug)]
pub struct Details {
    /// The program, its version, and how we came by it.
    pub server: Found,
    /// How it is.
    pub state: State,
    /// Where it listens.
    pub url: String,
    /// Its name, as clients see it.
    pub server_name: String,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// How many bytes JetStream may hold on disk.
    pub max_file_store_bytes: u64,
}

/// A server that is kept up for as long as this value lives.
#[derive(Debug)]
pub struct Server {
    launch: Arc<Launch>,
    keys: Arc<Keys>,
    port: u16,
    state: watch::Receiver<State>,
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<()>,
}

impl Server {
    /// Finds or fetches the program, makes keys and configuration, starts it and waits until it answers.
    pub async fn start(settings: Settings, lock: &FolderLock) -> Result<Server, Error> {
        let lock = lock.handle()?;
        let prepared = spawn_blocking(move || prepare(settings, lock)).await;
        let (launch, keys, port) = prepared.map_err(|_| Error::Ending)??;
        let (launch, keys) = (Arc::new(launch), Arc::new(keys));
        let (running, port) = first_start(&launch, &keys, port).await?;

        let (tell, state) = watch::channel(State::Ready { pid: running.pid, restarts: 0 });
        let (stop, stopped) = oneshot::channel();
        let supervisor = Supervisor { launch: Arc::clone(&launch), port, tell, restarts: 0 };
        let supervisor = tokio::spawn(supervisor.run(running, stopped));
        Ok(Server { launch, keys, port, state, stop, supervisor })
    }

    /// Where clients of this machine connect.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The port on the loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The house's keys, from which further identities are minted.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How the server is; the receiver tells every change.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// What there is to know about it.
    pub fn details(&self) -> Details {
        Details {
            server: self.launch.found.clone(),
            state: self.state.borrow().clone(),
            url: self.url(),
            server_name: self.launch.server_name.clone(),
            config: self.launch.settings.paths.config(),
            log: self.launch.settings.paths.log(),
            max_file_store_bytes: self.launch.max_file_store_bytes,
        }
    }

    /// Ends the server in order and returns once it is gone.
    pub async fn stop(self) -> Result<(), Error> {
        drop(self.stop);
        self.supervisor.await.map_err(|_| Error::Ending)
    }
}

/// All that is the same at every start.
#[derive(Debug)]
struct Launch {
    settings: Settings,
    found: Found,
    shim: PathBuf,
    lock: File,
    creds: String,
    server_name: String,
    max_file_store_bytes: u64,
}

fn prepare(settings: Settings, lock: File) -> Result<(Launch, Keys, Port), Error> {
    let paths = &settings.paths;
    // Before a long download: who cannot have the port should hear it now.
    let port = config::choose_port(settings.port, paths.kept_port()?)?;
    let found = fetch::find_or_fetch(&settings.search, &settings.say)?;
    let keys = Keys::open(&paths.keys(), settings.now)?;
    keys.owner().write(&paths.creds())?;
    private_folder(&paths.bus())?;
    private_folder(&paths.logs())?;
    let max_file_store_bytes = config::max_file_store_bytes(paths)?;
    let shim = match &settings.shim {
        Some(shim) => std::path::absolute(shim).map_err(Error::file("find", shim))?,
        // The link reaches this very program even after an upgrade has put another in its place.
        None if cfg!(target_os = "linux") => "/proc/self/exe".into(),
        None => std::env::current_exe().map_err(Error::file("find", Path::new("this program")))?,
    };
    let launch = Launch {
        found,
        shim,
        lock,
        creds: keys.owner().text(),
        server_name: config::server_name(&keys),
        max_file_store_bytes,
        settings,
    };
    Ok((launch, keys, port))
}

/// Between the choice of a port and the server's start another program may take it: then another is chosen,
/// unless the house is bound to this one.
async fn first_start(launch: &Launch, keys: &Keys, port: Port) -> Result<(Running, u16), Error> {
    const TRIES: u32 = 20;
    let paths = &launch.settings.paths;
    let Port { mut number, fixed } = port;
    let mut tried = 1;
    let running = loop {
        let max_file_store_bytes = launch.max_file_store_bytes;
        Config { paths, keys, port: number, max_file_store_bytes }.write()?;
        match launch.bring_up(number).await {
            Ok(running) => break running,
            Err(Error::PortTaken { .. }) if !fixed && tried < TRIES => {
                number = config::free_port()?;
                tried += 1;
            }
            Err(error) => return Err(error),
        }
    };
    super::write_secret(&paths.port(), format!("{number}\n").as_bytes())?;
    let description = format!("the longhouse in {}", paths.folder().display());
    paths.write_context(&paths::Door { description, url: url(number), creds: paths.creds() })?;
    Ok((running, number))
}

fn url(port: u16) -> String {
    format!("nats://127.0.0.1:{port}")
}

#[derive(Debug)]
struct Running {
    shim: Shim,
    began: Began,
    pid: u32,
}

/// How long the server's two logs were when it started: what follows is its own.
#[derive(Clone, Copy, Debug)]
struct Began {
    log: u64,
    stderr: u64,
}

/// The shim's process, and the pipe that it watches. Apart, because waiting for a child closes its pipe.
#[derive(Debug)]
struct Shim {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Launch {
    /// Starts the shim, and through it the server, and waits until JetStream answers.
    async fn bring_up(&self, port: u16) -> Result<Running, Error> {
        let paths = &self.settings.paths;
        let began = Began { log: length(&paths.log()), stderr: length(&paths.stderr()) };
        let mut shim = self.spawn()?;
        let ready = timeout(self.settings.ready_timeout, self.answers(port));
        tokio::select! {
            ended = shim.child.wait() => Err(self.why_died(ended, port, began)),
            ready = ready => match ready {
                Ok(()) => {
                    let config = paths.config();
                    let pid_file = paths.pid();
                    let found = spawn_blocking(move || process::servers_with(&config, &pid_file));
                    let pid = found.await.map_err(|_| Error::Ending)?.first().copied();
                    // It may have died since; then the shim tells.
                    Ok(Running { shim, began, pid: pid.unwrap_or_default() })
                }
                Err(_) => {
                    self.end(shim).await;
                    let after_s = self.settings.ready_timeout.as_secs();
                    Err(Error::NotReady { after_s, tail: self.tail(began) })
                }
            }
        }
    }

    fn spawn(&self) -> Result<Shim, Error> {
        let paths = &self.settings.paths;
        let last_words = paths.stderr();
        // A server that crashes again and again must not fill the disk with its traces.
        let fresh = length(&last_words) > LAST_WORDS_BYTES;
        let mut options = File::options();
        options.create(true).write(true).append(!fresh).truncate(fresh);
        let stderr = options.open(&last_words);
        let stderr = stderr.map_err(Error::file("write", &last_words))?;
        let lock =
            self.lock.try_clone().map_err(Error::file("share", &paths.folder().join("lock")))?;
        let arguments: [OsString; 4] =
            shim::arguments(&self.found.path, &paths.config(), self.settings.stop_grace);
        let mut child = Command::new(&self.shim)
            .arg0("longhouse")
            .args(arguments)
            .current_dir(paths.folder())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(lock))
            .stderr(Stdio::from(stderr))
            .spawn()
            .map_err(|source| Error::Program { program: self.shim.clone(), source })?;
        Ok(Shim { pipe: child.stdin.take(), child })
    }

    /// Returns when the house's own server answers for JetStream.
    async fn answers(&self, port: u16) {
        let mut pause = Duration::from_millis(2);
        while !self.answers_now(port).await {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn answers_now(&self, port: u16) -> bool {
        // Cheaper than a client's whole greeting, and most tries end here.
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            return false;
        }
        let greeting = async {
            let client = async_nats::ConnectOptions::with_credentials(&self.creds)
                .ok()?
                .name("longhouse: is the bus ready?")
                .connect(url(port))
                .await
                .ok()?;
            // Another house's server, or a stranger's, may have got the port first.
            if client.server_info().server_name != self.server_name {
                return None;
            }
            let said = client.request("$JS.API.INFO", "".into()).await.ok()?;
            let said: serde_json::Value = serde_json::from_slice(&said.payload).ok()?;
            said.get("error").is_none().then_some(())
        };
        matches!(timeout(ANSWER, greeting).await, Ok(Some(())))
    }

    fn why_died(&self, ended: std::io::Result<ExitStatus>, port: u16, began: Began) -> Error {
        let tail = self.tail(began);
        if tail.contains("address already in use") || !config::is_free(port) {
            return Error::PortTaken { port, holder: process::port_holder(port) };
        }
        Error::Died { how: how(ended), tail }
    }

    /// The last that the server has written since this start, in its log or outside.
    fn tail(&self, began: Began) -> String {
        let paths = &self.settings.paths;
        let parts = [read_tail(&paths.log(), began.log), read_tail(&paths.stderr(), began.stderr)];
        parts.map(|part| part.trim().to_owned()).join("\n").trim().to_owned()
    }

    /// How it ended, with the first of its last words: a crash of the server says there what it was.
    fn epitaph(&self, how: String, began: Began) -> String {
        let last_words = read_tail(&self.settings.paths.stderr(), began.stderr);
        match last_words.lines().next() {
            Some(line) => format!("{how}: {line}"),
            None => how,
        }
    }

    /// Ends the server by letting go of the shim's pipe, and returns once both are gone.
    async fn end(&self, shim: Shim) {
        let Shim { mut child, pipe } = shim;
        drop(pipe);
        let patience = self.settings.stop_grace + Duration::from_secs(5);
        if timeout(patience, child.wait()).await.is_err() {
            // It hangs; what it leaves behind is ended below. One that has just ended is as good.
            let _ = child.kill().await;
        }
        self.end_left_behind().await;
    }

    /// A shim that was killed leaves its server behind; two servers on one store lose messages.
    async fn end_left_behind(&self) {
        let paths = self.settings.paths.clone();
        let ended = spawn_blocking(move || {
            let (config, pid_file) = (paths.config(), paths.pid());
            let left = process::servers_with(&config, &pid_file);
            process::end_servers(&left, &config, &pid_file);
            left
        });
        for pid in ended.await.unwrap_or_default() {
            tracing::warn!(pid, "ended a bus server that was left behind");
        }
    }
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

fn read_tail(path: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        // A log that is shorter than before was rotated: all of it is new.
        let from = if from > len { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

fn how(ended: std::io::Result<ExitStatus>) -> String {
    match ended.map(|status| (status.code(), status.signal())) {
        Ok((Some(code), _)) if code > 128 => format!("signal {}", code - 128),
        Ok((Some(code), _)) => format!("exit code {code}"),
        Ok((None, Some(signal))) => format!("its shim by signal {signal}"),
        Ok((None, None)) => "for no known reason".into(),
        Err(error) => format!("it could not be watched: {error}"),
    }
}

struct Supervisor {
    launch: Arc<Launch>,
    port: u16,
    tell: watch::Sender<State>,
    restarts: u32,
}

impl Supervisor {
    async fn run(mut self, mut running: Running, mut stop: oneshot::Receiver<()>) {
        let mut failures = 0;
        loop {
            let up_since = Instant::now();
            let ended = tokio::select! {
                ended = running.shim.child.wait() => ended,
                _ = &mut stop => {
                    self.launch.end(running.shim).await;
                    break;
                }
            };
            if up_since.elapsed() >= STEADY {
                failures = 0;
            }
            let ended = self.launch.epitaph(how(ended), running.began);
            tokio::select! {
                again = self.again(ended, &mut failures) => running = again,
                _ = &mut stop => {
                    // A start that was under way has lost its pipe just now.
                    self.launch.end_left_behind().await;
                    break;
                }
            }
        }
        self.tell.send_replace(State::Stopped);
    }

    /// Tries until the server answers again.
    async fn again(&mut self, ended: String, failures: &mut u32) -> Running {
        let say = &self.launch.settings.say;
        let mut reason = format!("the bus's server ended ({ended})");
        loop {
            let delay = backoff(*failures);
            *failures = failures.saturating_add(1);
            say.line(format!("{reason}; starting it again in {} ms", delay.as_millis()));
            self.tell.send_replace(State::Restarting { reason: reason.clone() });
            sleep(delay).await;
            self.launch.end_left_behind().await;
            match self.launch.bring_up(self.port).await {
                Ok(running) => {
                    self.restarts += 1;
                    say.line(format!("the bus is up again on {}", url(self.port)));
                    let (pid, restarts) = (running.pid, self.restarts);
                    self.tell.send_replace(State::Ready { pid, restarts });
                    return running;
                }
                Err(error) => reason = error.to_string(),
            }
        }
    }
}

fn backoff(failures: u32) -> Duration {
    (FIRST_DELAY * 2u32.pow(failures.min(10))).min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_quickly_at_first_and_never_slower_than_every_ten_seconds() {
        assert_eq!(backoff(0), Duration::from_millis(100));
        assert_eq!(backoff(3), Duration::from_millis(800));
        assert_eq!(backoff(u32::MAX), LONGEST_DELAY);
    }

    #[test]
    fn a_tail_is_what_was_written_since_the_start_also_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old\nnew\n").unwrap();
        assert_eq!(read_tail(&log, 4), "new\n");
        assert_eq!(read_tail(&log, 400), "old\nnew\n");
        assert_eq!(read_tail(&dir.path().join("none"), 0), "");
    }
}
