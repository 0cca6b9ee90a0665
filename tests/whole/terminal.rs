//! What happens at a real terminal: Ctrl-C asks, colours and bars are there, elsewhere they are not.

use crate::house::{House, LONGHOUSE, patiently};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    process::Stdio,
    sync::mpsc,
};
use tokio::process::{Child, Command};

/// A terminal with a command of the house in it.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// `setsid --ctty` makes the terminal the command's own, so that Ctrl-C reaches it as a signal.
    fn open(house: &House, args: &[&str]) -> Terminal {
        Self::with(house, LONGHOUSE, args)
    }

    fn with(house: &House, program: &str, args: &[&str]) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let side = || Stdio::from(slave.try_clone().unwrap());
        let like = house.command(args);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", program]).args(args).env_clear();
        for (name, value) in like.as_std().get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.env("TERM", "xterm").stdin(side()).stdout(side()).stderr(side()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let mut reader = master.try_clone().unwrap();
        let (shown, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if shown.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keyboard: master, screen, seen: String::new() }
    }

    /// Waits until the screen shows a text.
    async fn shows(&mut self, text: &str) {
        let wait = async {
            while !self.seen.contains(text) {
                match self.screen.try_recv() {
                    Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                    Err(mpsc::TryRecvError::Empty) => tokio::task::yield_now().await,
                    Err(mpsc::TryRecvError::Disconnected) => {
                        panic!("the terminal closed before it showed {text:?}: {}", self.seen)
                    }
                }
            }
        };
        patiently(&format!("{text:?} on the screen"), wait).await;
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    async fn ends(&mut self) -> Option<i32> {
        patiently("the end of the command", self.child.wait()).await.unwrap().code()
    }
}

const CTRL_C: &str = "\x03";

#[tokio::test]
async fn ctrl_c_asks_and_d_leaves_the_job_running() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let gate = house.dir.join("gate");
    let script = format!("echo begun; until test -e '{}'; do sleep 0.01; done", gate.display());
    let mut terminal = Terminal::open(&house, &["run", "--name", "job", "--", "sh", "-c", &script]);
    terminal.shows("begun").await;

    terminal.types(CTRL_C);
    terminal.shows("`job` goes on. [d]etach").await;
    terminal.types("q\n");
    terminal.shows("which?").await;
    terminal.types("d\n");
    terminal.shows("detached").await;

    assert_eq!(terminal.ends().await, Some(0));
    assert_eq!(house.json(&["show", "job", "--json"]).await["state"], "running");
    std::fs::write(gate, "").unwrap();
    house.says(&["wait", "job"]).await;
}

#[tokio::test]
async fn a_second_ctrl_c_cancels() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let mut terminal = Terminal::open(
        &house,
        &["run", "--name", "job", "--", "sh", "-c", "echo begun; exec sleep 1000"],
    );
    terminal.shows("begun").await;

    terminal.types(CTRL_C);
    terminal.shows("[d]etach").await;
    terminal.types(CTRL_C);
    terminal.shows("cancelling").await;

    assert_ne!(terminal.ends().await, Some(0));
    assert_eq!(house.json(&["show", "job", "--json"]).await["state"], "cancelled");
}

#[tokio::test]
async fn colours_are_for_terminals_and_for_who_has_not_declined_them() {
    let house = House::up(&[("home", "cpus=2")]).await;
    house.longhouse(&["run", "--", "false"]).await;

    let mut terminal = Terminal::open(&house, &["ls"]);
    terminal.shows("failed").await;
    let piped = house.says(&["ls"]).await;

    let mut declined = Terminal::open(&house, &["ls", "--color", "never"]);
    declined.shows("failed").await;
    assert_eq!(declined.ends().await, Some(0));

    assert!(terminal.seen.contains("\x1b["), "{:?}", terminal.seen);
    assert!(!declined.seen.contains('\x1b'), "{:?}", declined.seen);
    assert!(!piped.contains('\x1b'), "{piped:?}");
}

#[tokio::test]
async fn map_shows_how_far_it_is_on_a_terminal() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let list = house.dir.join("list");
    std::fs::write(&list, "a\nb\nc\n").unwrap();
    let line = format!("'{LONGHOUSE}' map -- echo {{item}} < '{}'", list.display());

    // The shell is only there to give it the list.
    let mut terminal = Terminal::with(&house, "sh", &["-c", &format!("exec {line}")]);
    terminal.shows("3/3").await;

    assert_eq!(terminal.ends().await, Some(0));
}
