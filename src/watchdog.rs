//! Starts parts of a house again that have ended by themselves: a panic must not leave a house that
//! is dead and looks up.

use crate::{app::App, style, terminal, up, worker};
use bus::server::{FolderLock, Paths, Server};
use futures::future::{BoxFuture, FutureExt, select_all};
use schemas::time::Millis;
use std::{collections::BTreeMap, fmt, time::Duration};

/// Before the first start.
const FIRST_MS: u64 = 100;
/// Before one that failed often.
const LONGEST_MS: u64 = 10_000;
/// What has stayed up so long is well again.
const STEADY_MS: u64 = 30_000;

/// A part that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    Node,
    Scheduler,
    Manager,
    Bus,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Which::Node => "node",
            Which::Scheduler => "scheduler",
            Which::Manager => "manager",
            Which::Bus => "bus",
        })
    }
}

/// A part that has been started again.
pub(crate) enum Begun {
    Node(Box<workers::Agent>),
    Scheduler(actors::scheduler::Handle),
    Manager(actors::manager::Handle),
    Bus(Box<(Server, FolderLock)>),
}

/// How often a part has ended by itself lately.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    count: u32,
    last: Millis,
}

impl Ends {
    /// How long to wait before it is started after one more end.
    fn pause_ms(&mut self, now: Millis) -> u64 {
        if now.since(self.last) >= self.last_pause_ms() + STEADY_MS {
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.last = now;
        self.last_pause_ms()
    }

    fn last_pause_ms(&self) -> u64 {
        (FIRST_MS << self.count.saturating_sub(1).min(10)).min(LONGEST_MS)
    }
}

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Watchdog {
    ends: BTreeMap<Which, Ends>,
    starting: BTreeMap<Which, BoxFuture<'static, (Which, Begun)>>,
}

impl Watchdog {
    /// Whether nothing is being started.
    pub(crate) fn is_idle(&self) -> bool {
        self.starting.is_empty()
    }

    /// These are to end: they are not started any more.
    pub(crate) fn forget(&mut self, which: &[Which]) {
        self.starting.retain(|starting, _| !which.contains(starting));
    }

    /// Begins to start a part again, as often as it takes; `server` is the bus beside it.
    pub(crate) fn start_again(&mut self, app: &App, which: Which, server: Option<&Server>) {
        let mut ends = self.ends.get(&which).copied().unwrap_or_default();
        let pause_ms = ends.pause_ms(bus::clock::at());
        self.ends.insert(which, ends);
        say(&format!(
            "the {which} has ended by itself; starting it again in {} (the logs are in {})",
            style::span(pause_ms),
            app.dir.join("logs").display()
        ));
        let manager = up::manager_settings(app, server);
        let app = app.clone();
        let starting = async move {
            let mut pause_ms = pause_ms;
            loop {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                match start(&app, which, &manager).await {
                    Ok(begun) => {
                        say(&format!("the {which} is up again"));
                        return (which, begun);
                    }
                    Err(error) => {
                        pause_ms = ends.pause_ms(bus::clock::at());
                        let next = style::span(pause_ms);
                        say(&format!("the {which} did not start: {error:#}; again in {next}"));
                    }
                }
            }
        };
        self.starting.insert(which, starting.boxed());
    }

    /// The next part that is up again.
    pub(crate) async fn next(&mut self) -> Begun {
        if self.starting.is_empty() {
            return std::future::pending().await;
        }
        let ((which, begun), ..) = select_all(self.starting.values_mut()).await;
        self.starting.remove(&which);
        begun
    }
}

async fn start(
    app: &App,
    which: Which,
    manager: &actors::manager::Settings,
) -> anyhow::Result<Begun> {
    Ok(match which {
        Which::Node => Begun::Node(worker::start(app).await?.into()),
        Which::Scheduler => Begun::Scheduler(up::start_scheduler(app).await?),
        Which::Manager => Begun::Manager(up::start_manager(app, manager.clone()).await?),
        Which::Bus => Begun::Bus(up::start_server(app, &Paths::open(&app.dir)?).await?.into()),
    })
}

fn say(sentence: &str) {
    tracing::error!(sentence, "a part of the house");
    terminal::say(sentence);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_while_a_part_keeps_ending_and_is_short_again_when_it_was_steady() {
        let mut ends = Ends::default();
        let mut now = 1_000_000;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.push(ends.pause_ms(Millis(now)));
            now += pauses[pauses.len() - 1] + 1000;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(ends.pause_ms(Millis(now + 60_000)), 100);
    }
}
