//! Plain threads that start processes and clear up after them, so that the keeper's loop never waits for a
//! disk or an `exec`.
//!
//! A child belongs to the thread that started it, so the orphans that come to the keeper are told from its
//! own children: they come to the main thread, which starts none.

use super::{
    core::{Job, JobId, NotSpawned},
    outputs,
    scratch::{Folder, Scratch},
    spawn::{self, Command},
};
use crate::protocol::Hello;
use rustix::event::{PollFd, PollFlags};
use schemas::{
    outcome::Ending,
    work::{Process, Run, fill},
};
use std::{
    collections::{BTreeMap, VecDeque},
    ffi::CString,
    fs::File,
    io::{self, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
};

/// Where programs are looked up if the worker has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// So much input fits into any pipe; more comes from a file.
const PIPED_STDIN: usize = 4096;

/// What is to be done by a thread.
#[derive(Debug)]
pub(crate) enum Task {
    /// Start a process.
    Launch(Arc<Job>, Arc<Hello>),
    /// Read its outputs and take its folder back.
    Finish(Arc<Job>, Box<Ending>, Folder),
}

/// What was done.
#[derive(Debug)]
pub(crate) enum Done {
    /// It runs.
    Launched(JobId, Launched),
    /// It does not.
    NotLaunched(JobId, NotSpawned),
    /// Its folder is cleared and its outputs are in the ending.
    Finished(JobId, Box<Ending>),
}

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    /// Becomes readable when it has ended, where the system has such.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) folder: Folder,
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Launcher {
    tasks: Arc<(Mutex<VecDeque<Task>>, Condvar)>,
    done: mpsc::Receiver<Done>,
    wake: OwnedFd,
    scratch: Arc<Scratch>,
}

impl Launcher {
    /// Starts `threads` threads.
    pub(crate) fn start(threads: usize, scratch: Scratch) -> io::Result<Self> {
        let tasks = Arc::new((Mutex::new(VecDeque::new()), Condvar::new()));
        let scratch = Arc::new(scratch);
        let (say, done) = mpsc::channel();
        let (wake, waker) = pipe()?;
        rustix::io::ioctl_fionbio(&wake, true)?;
        rustix::io::ioctl_fionbio(&waker, true)?;
        let waker = Arc::new(waker);
        for n in 0..threads {
            let (tasks, say, waker, scratch) =
                (tasks.clone(), say.clone(), waker.clone(), scratch.clone());
            thread::Builder::new()
                .name(format!("launch-{n}"))
                .stack_size(256 * 1024)
                .spawn(move || work(&tasks, &say, &waker, &scratch))?;
        }
        Ok(Self { tasks, done, wake, scratch })
    }

    /// Hands a task to a thread.
    pub(crate) fn give(&self, task: Task) {
        self.tasks.0.lock().expect("no thread panics with it").push_back(task);
        self.tasks.1.notify_one();
    }

    /// Readable when [`Launcher::done`] has something.
    pub(crate) fn wake(&self) -> PollFd<'_> {
        PollFd::new(&self.wake, PollFlags::IN)
    }

    /// What has been done since it was last asked.
    pub(crate) fn done(&self) -> Vec<Done> {
        // First the bell, then the door: what comes in between rings again.
        let mut buffer = [0; 256];
        while rustix::io::read(&self.wake, &mut buffer).is_ok_and(|n| n == buffer.len()) {}
        self.done.try_iter().collect()
    }

    /// Takes a folder back here and now, if that is quick; else gives it to a thread by and by.
    pub(crate) fn take_back_if_empty(&self, folder: Folder) -> Result<(), Folder> {
        self.scratch.take_back_if_empty(folder)
    }
}

fn work(
    tasks: &(Mutex<VecDeque<Task>>, Condvar),
    say: &mpsc::Sender<Done>,
    waker: &OwnedFd,
    scratch: &Scratch,
) {
    loop {
        let task = {
            let mut tasks_left = tasks.0.lock().expect("no thread panics with it");
            loop {
                match tasks_left.pop_front() {
                    Some(task) => break task,
                    None => {
                        tasks_left = tasks.1.wait(tasks_left).expect("no thread panics with it");
                    }
                }
            }
        };
        let done = match task {
            Task::Launch(job, hello) => match launch(&job, &hello, scratch) {
                Ok(launched) => Done::Launched(job.id, launched),
                Err(why) => Done::NotLaunched(job.id, why),
            },
            Task::Finish(job, mut ending, folder) => {
                outputs::read_all(&job, folder.path(), &mut ending);
                scratch.take_back(folder);
                Done::Finished(job.id, ending)
            }
        };
        if say.send(done).is_err() {
            return;
        }
        // A full pipe is a rung bell.
        let _ = rustix::io::write(waker, &[1]);
    }
}

fn node_fault(what: &str, error: impl std::fmt::Display) -> NotSpawned {
    NotSpawned { exit_code: None, why: format!("{what}: {error}") }
}

fn launch(job: &Job, hello: &Hello, scratch: &Scratch) -> Result<Launched, NotSpawned> {
    let folder = scratch.give().map_err(|e| node_fault("no scratch folder", e))?;
    match launch_in(job, hello, &folder) {
        Ok((pid, pidfd, stdout, stderr)) => Ok(Launched { pid, pidfd, stdout, stderr, folder }),
        Err(why) => {
            scratch.take_back(folder);
            Err(why)
        }
    }
}

fn launch_in(
    job: &Job,
    hello: &Hello,
    folder: &Folder,
) -> Result<(i32, Option<OwnedFd>, OwnedFd, OwnedFd), NotSpawned> {
    let Run::Process(process) = &job.shared.spec.run else {
        return Err(node_fault("not a process", "an echo has none"));
    };
    let nul = |_| NotSpawned {
        exit_code: Some(126),
        why: "an argument or a variable has a NUL byte in it".to_owned(),
    };
    let argv = arguments(job, process);
    let env = environment(job, process, hello, folder.path());
    let program = find(&argv, env.get("PATH").map(String::as_str), folder.path())?;
    let argv: Vec<CString> =
        argv.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(nul)?;
    let env: Vec<CString> = env
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")))
        .collect::<Result<_, _>>()
        .map_err(nul)?;
    let program = CString::new(program.as_os_str().as_bytes()).map_err(nul)?;
    let io = |e| node_fault("no pipe", e);
    let stdin =
        input(process.stdin.as_ref().map_or(&[][..], |stdin| &stdin.0), folder).map_err(io)?;
    let (stdout, stdout_end) = pipe().map_err(io)?;
    let (stderr, stderr_end) = pipe().map_err(io)?;
    for end in [&stdout, &stderr] {
        // Ours only: the job's end of the pipe is a description of its own, and blocks.
        rustix::io::ioctl_fionbio(end, true).map_err(|e| io(e.into()))?;
    }
    let command = Command {
        program: &program,
        argv: &argv,
        env: &env,
        folder: folder.c_path(),
        stdio: [stdin.as_fd(), stdout_end.as_fd(), stderr_end.as_fd()],
    };
    let pid = spawn::spawn(&command).map_err(|error| not_executable(&program, &error))?;
    Ok((pid, watch(pid), stdout, stderr))
}

/// A descriptor that becomes readable when the process ends. Without one its end is asked for.
#[cfg(target_os = "linux")]
fn watch(pid: i32) -> Option<OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

#[cfg(not(target_os = "linux"))]
fn watch(_: i32) -> Option<OwnedFd> {
    None
}

/// A pipe that no child inherits.
#[cfg(target_os = "linux")]
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

#[cfg(not(target_os = "linux"))]
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe()?;
    rustix::io::fcntl_setfd(&read, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&write, rustix::io::FdFlags::CLOEXEC)?;
    Ok((read, write))
}

fn not_executable(program: &CString, error: &io::Error) -> NotSpawned {
    let program = program.to_string_lossy();
    match error.kind() {
        // The program is there: it is its interpreter, or the folder, that is not.
        io::ErrorKind::NotFound => NotSpawned {
            exit_code: Some(127),
            why: format!("`{program}` names an interpreter that is not there"),
        },
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => {
            node_fault(&format!("`{program}` could not be started"), error)
        }
        _ => {
            NotSpawned { exit_code: Some(126), why: format!("`{program}` cannot be run: {error}") }
        }
    }
}

/// Puts index and item into a text of an array task.
pub(crate) fn filled(job: &Job, text: &str) -> String {
    if job.shared.spec.array {
        fill(text, job.index, job.item.as_deref()).into_owned()
    } else {
        text.to_owned()
    }
}

fn arguments(job: &Job, process: &Process) -> Vec<String> {
    process.argv.iter().map(|argument| filled(job, argument)).collect()
}

fn environment(
    job: &Job,
    process: &Process,
    hello: &Hello,
    scratch: &Path,
) -> BTreeMap<String, String> {
    let node = &hello.env;
    let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    let common = ["PATH", "HOME", "USER", "LANG", "TZ"];
    let asked = job.shared.spec.env_from_node.iter().map(String::as_str);
    for name in common.into_iter().chain(asked) {
        if let Some(value) = node.get(name) {
            env.insert(name.to_owned(), value.clone());
        }
    }
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    set("TMPDIR", scratch.to_string_lossy().into_owned());
    for (name, value) in &process.env {
        set(name, filled(job, value));
    }
    let shared = &job.shared;
    set("LONGHOUSE_INDEX", job.index.to_string());
    if let Some(item) = &job.item {
        set("LONGHOUSE_ITEM", item.to_string());
    }
    set("LONGHOUSE_WORK", shared.work.to_string());
    set("LONGHOUSE_TASK", shared.task.to_string());
    set("LONGHOUSE_NODE", hello.node.to_string());
    set("LONGHOUSE_ATTEMPT", shared.attempt.to_string());
    if job.hide_cards {
        let cards: Vec<String> = job.cards.iter().map(u32::to_string).collect();
        set("CUDA_VISIBLE_DEVICES", cards.join(","));
    }
    env
}

/// Finds the program as a shell would: a name in PATH, a path as it is, from the scratch folder.
fn find(argv: &[String], path: Option<&str>, folder: &Path) -> Result<PathBuf, NotSpawned> {
    let name = argv.first().map_or("", String::as_str);
    let not_found =
        || NotSpawned { exit_code: Some(127), why: format!("there is no program `{name}`") };
    if name.is_empty() {
        return Err(not_found());
    }
    let mut there = None;
    let folders = if name.contains('/') { "." } else { path.unwrap_or(DEFAULT_PATH) };
    for at in folders.split(':') {
        let candidate = folder.join(if at.is_empty() { "." } else { at }).join(name);
        let Ok(about) = candidate.metadata() else { continue };
        if about.is_file() && about.permissions().mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        there = Some(candidate);
    }
    match there {
        None => Err(not_found()),
        Some(path) => Err(NotSpawned {
            exit_code: Some(126),
            why: format!("`{}` is not executable", path.display()),
        }),
    }
}

fn input(bytes: &[u8], folder: &Folder) -> io::Result<OwnedFd> {
    if bytes.is_empty() {
        return Ok(File::open("/dev/null")?.into());
    }
    if bytes.len() <= PIPED_STDIN {
        let (read, write) = pipe()?;
        File::from(write).write_all(bytes)?;
        return Ok(read);
    }
    let mut file = tempfile::tempfile_in(folder.outside())?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
