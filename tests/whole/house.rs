//! Raises whole houses for tests: a real bus, the real binary, real processes. The only file that
//! knows how.

use bus::server::{Search, fetch::find_or_fetch};
use schemas::token::CallerName;
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::OnceLock,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    sync::watch,
};

/// No event takes this long; one that does not come at all must not hang the build.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The binary that is tested.
pub(crate) const LONGHOUSE: &str = env!("CARGO_BIN_EXE_longhouse");

/// A house in a temporary folder; everything of it ends with the value.
pub(crate) struct House {
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// `up`, then the workers, in the order of their start.
    pub(crate) processes: Vec<Process>,
    _temp: TempDir,
}

/// A long-lived `longhouse` process.
pub(crate) struct Process {
    /// The process; killed when dropped.
    pub(crate) child: Child,
    /// Held, so that it may print.
    _stdout: Lines<BufReader<ChildStdout>>,
    /// Its `ready` line.
    pub(crate) ready: String,
    stderr: watch::Receiver<String>,
    reader: tokio::task::JoinHandle<()>,
}

impl Process {
    /// Its process id.
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        let id = self.child.id().expect("it has not been waited for");
        rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
    }

    /// Sends a signal to it alone.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has ended; its exit status and what it said on stderr.
    pub(crate) async fn ended(mut self) -> (std::process::ExitStatus, String) {
        let status = patiently("the end of a process", self.child.wait()).await.unwrap();
        self.reader.await.unwrap();
        (status, self.stderr.borrow().clone())
    }

    /// Waits until it has said something on stderr.
    pub(crate) async fn says(&mut self, text: &str) {
        let said = self.stderr.wait_for(|said| said.contains(text));
        patiently(&format!("`{text}`"), said).await.unwrap();
    }
}

/// The one nats-server for all tests and runs.
pub(crate) fn nats_server() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats cache");
        let search = Search { path: std::env::var_os("PATH"), cache, ..Search::default() };
        find_or_fetch(&search, &bus::server::Say::nothing()).expect("a nats-server").path
    })
}

/// Waits for something that will come.
pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {PATIENCE:?}"),
    }
}

impl House {
    /// A house with the bus, manager and scheduler in one process and a worker process for each
    /// node: its name and what it lends (`cpus=4,memory=1GiB,gpus=1`).
    pub(crate) async fn up(nodes: &[(&str, &str)]) -> House {
        let mut house = House::new("");
        house.start(&["up", "--port", "0", "--only", "bus,manager,scheduler"]).await;
        for (name, lend) in nodes {
            house.start(&["worker", "--name", name, "--lend", lend]).await;
        }
        house
    }

    /// Only the folder, with a `config.toml`.
    pub(crate) fn new(config: &str) -> House {
        let temp = tempfile::Builder::new().prefix("a house ").tempdir().unwrap();
        let dir = temp.path().join("longhouse");
        std::fs::create_dir_all(&dir).unwrap();
        if !config.is_empty() {
            std::fs::write(dir.join("config.toml"), config).unwrap();
        }
        House { dir, processes: Vec::new(), _temp: temp }
    }

    /// A command of this house, with nothing of the test's own environment but the PATH.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(LONGHOUSE);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self._temp.path())
            .env("LONGHOUSE_DIR", &self.dir)
            .env("LONGHOUSE_BUS__SERVER", nats_server())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts a long-lived command and waits for its `ready`; says which process it is.
    pub(crate) async fn start(&mut self, args: &[&str]) -> usize {
        let process = self.spawn(args).await.unwrap_or_else(|said| panic!("{args:?}: {said}"));
        self.processes.push(process);
        self.processes.len() - 1
    }

    /// Starts a long-lived command; what it said if it ended before it was ready.
    pub(crate) async fn spawn(&self, args: &[&str]) -> Result<Process, String> {
        let mut child = self.command(args).spawn().unwrap();
        let stdout = child.stdout.take().expect("it is piped");
        let (said, stderr) = watch::channel(String::new());
        let reader = tokio::spawn(read_all(child.stderr.take().expect("it is piped"), said));
        let mut stdout = BufReader::new(stdout).lines();
        loop {
            match patiently("`ready`", stdout.next_line()).await.unwrap() {
                Some(line) if line.starts_with("ready") => {
                    return Ok(Process { child, _stdout: stdout, ready: line, stderr, reader });
                }
                Some(_) => {}
                None => {
                    let status = child.wait().await.unwrap();
                    reader.await.unwrap();
                    return Err(format!("{status}: {}", &*stderr.borrow()));
                }
            }
        }
    }

    /// Runs a command to its end.
    pub(crate) async fn longhouse(&self, args: &[&str]) -> Output {
        self.longhouse_with(args, b"").await
    }

    /// Runs a command to its end, with something to read.
    pub(crate) async fn longhouse_with(&self, args: &[&str], stdin: &[u8]) -> Output {
        let mut command = self.command(args);
        if !stdin.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        if let Some(mut pipe) = child.stdin.take() {
            let stdin = stdin.to_vec();
            tokio::spawn(async move {
                let _ = pipe.write_all(&stdin).await;
            });
        }
        patiently(&format!("the end of {args:?}"), child.wait_with_output()).await.unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) async fn says(&self, args: &[&str]) -> String {
        let output = self.longhouse(args).await;
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed and print JSON.
    pub(crate) async fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.says(args).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Where its bus is.
    pub(crate) fn url(&self) -> String {
        let port = std::fs::read_to_string(self.dir.join("bus/port")).unwrap();
        format!("nats://127.0.0.1:{}", port.trim())
    }

    /// The owner's credentials.
    pub(crate) fn creds(&self) -> PathBuf {
        self.dir.join("owner.creds")
    }

    /// A connection through our own room.
    pub(crate) async fn bus(&self) -> bus::Bus {
        bus::Bus::connect(bus::Settings {
            url: self.url(),
            creds: Some(self.creds()),
            name: "test".into(),
            caller: CallerName::owner(),
            inbox_prefix: None,
        })
        .await
        .unwrap()
    }

    /// A connection that knows nothing of us.
    pub(crate) async fn nats(&self) -> async_nats::Client {
        let options = async_nats::ConnectOptions::with_credentials_file(self.creds()).await;
        options.unwrap().connect(self.url()).await.unwrap()
    }

    /// One request in JSON, as any client would make it: the answer's body.
    pub(crate) async fn ask(&self, subject: &str, body: &str) -> serde_json::Value {
        let client = self.nats().await;
        let answer = client.request(subject.to_owned(), body.to_owned().into());
        let answer = patiently(subject, answer).await.unwrap();
        serde_json::from_slice(&answer.payload)
            .unwrap_or_else(|error| panic!("{subject}: {error}: {:?}", answer.payload))
    }
}

async fn read_all(mut stderr: ChildStderr, said: watch::Sender<String>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        said.send_modify(|said| said.push_str(&String::from_utf8_lossy(&buffer[..read])));
    }
    if std::env::var_os("SHOW_STDERR").is_some() {
        // The test harness swallows what `eprintln!` says.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), said.borrow().as_bytes());
    }
}
