//! What signals mean to a command that waits for a job.

use crate::terminal;
use std::io::BufRead;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing changes.
    GoOn,
    /// We end, the job goes on.
    Detach,
    /// The job is to end; we wait for that.
    Cancel,
    /// It is being cancelled, and we do not wait for it.
    Leave,
}

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Interrupt,
    Terminate,
    HangUp,
}

/// How far the conversation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Running,
    /// The user was asked what Ctrl-C shall mean.
    Asked,
    Cancelling,
}

impl Stage {
    /// What a signal means; `None`: the user must be asked.
    fn meaning(self, came: Came, on_terminal: bool) -> Option<Wish> {
        match (self, came) {
            (_, Came::HangUp) => Some(Wish::Detach),
            (Stage::Cancelling, _) => Some(Wish::Leave),
            (Stage::Running, Came::Interrupt) if on_terminal => None,
            (Stage::Running | Stage::Asked, _) => Some(Wish::Cancel),
        }
    }
}

/// The signals of this process, and the user's answers.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    answers: Option<mpsc::Receiver<Wish>>,
    stage: Stage,
    on_terminal: bool,
}

impl Signals {
    /// From now on signals do not end this process.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            answers: None,
            stage: Stage::default(),
            on_terminal: terminal::stderr_is_terminal(),
        })
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.interrupt.recv() => Came::Interrupt,
            _ = self.terminate.recv() => Came::Terminate,
            _ = self.hang_up.recv() => Came::HangUp,
        }
    }

    /// The next wish, by a signal or by an answer of the user.
    pub(crate) async fn wish(&mut self, called: &str) -> Wish {
        let wish = if let Some(mut answers) = self.answers.take() {
            tokio::select! {
                came = self.next() => {
                    self.answers = Some(answers);
                    self.stage.meaning(came, self.on_terminal)
                }
                answer = answers.recv() => {
                    self.stage = Stage::Running;
                    Some(answer.unwrap_or(Wish::GoOn))
                }
            }
        } else {
            let came = self.next().await;
            self.stage.meaning(came, self.on_terminal)
        };
        match wish {
            Some(wish) => {
                if wish == Wish::Cancel {
                    self.stage = Stage::Cancelling;
                    terminal::say(&format!("cancelling {called}…"));
                }
                wish
            }
            None => {
                self.ask(called);
                Wish::GoOn
            }
        }
    }

    fn ask(&mut self, called: &str) {
        self.stage = Stage::Asked;
        terminal::note("");
        terminal::say(&format!(
            "{called} goes on. [d]etach, [c]ancel, or Enter to go on waiting? (Ctrl-C again cancels)"
        ));
        let (tell, answers) = mpsc::channel(1);
        self.answers = Some(answers);
        // A thread of its own: reading a terminal cannot be given up.
        std::thread::spawn(move || {
            if let Some(wish) = read_answer() {
                let _ = tell.blocking_send(wish);
            }
        });
    }
}

fn read_answer() -> Option<Wish> {
    let mut tty = std::io::BufReader::new(std::fs::File::open("/dev/tty").ok()?);
    loop {
        let mut line = String::new();
        if tty.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match answer(&line) {
            Some(Wish::GoOn) => {
                terminal::say("going on waiting");
                return Some(Wish::GoOn);
            }
            Some(wish) => return Some(wish),
            None => terminal::say("d detaches, c cancels, Enter goes on waiting: which?"),
        }
    }
}

/// What an answer means; `None`: nobody knows.
fn answer(line: &str) -> Option<Wish> {
    match line.trim().to_lowercase().as_str() {
        "d" | "detach" => Some(Wish::Detach),
        "c" | "cancel" => Some(Wish::Cancel),
        "" => Some(Wish::GoOn),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_terminal_the_first_ctrl_c_asks_and_the_second_cancels() {
        assert_eq!(Stage::Running.meaning(Came::Interrupt, true), None);
        assert_eq!(Stage::Asked.meaning(Came::Interrupt, true), Some(Wish::Cancel));
        assert_eq!(Stage::Cancelling.meaning(Came::Interrupt, true), Some(Wish::Leave));
    }

    #[test]
    fn without_a_terminal_nobody_is_asked() {
        assert_eq!(Stage::Running.meaning(Came::Interrupt, false), Some(Wish::Cancel));
        assert_eq!(Stage::Running.meaning(Came::Terminate, false), Some(Wish::Cancel));
    }

    #[test]
    fn hanging_up_always_detaches() {
        for on_terminal in [true, false] {
            assert_eq!(Stage::Running.meaning(Came::HangUp, on_terminal), Some(Wish::Detach));
        }
    }

    #[test]
    fn an_answer_is_a_letter_or_a_word() {
        assert_eq!(answer("d\n"), Some(Wish::Detach));
        assert_eq!(answer("Cancel\n"), Some(Wish::Cancel));
        assert_eq!(answer("\n"), Some(Wish::GoOn));
        assert_eq!(answer("q\n"), None);
    }
}
