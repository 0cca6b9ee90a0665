//! `longhouse map`: a command once for each line of a list, on all machines at once.

mod feed;
mod show;

use crate::{
    app::App,
    cancel,
    client::{House, perhaps_done},
    failure::{Failure, exit},
    follow::{Following, Step},
    job_options::JobOptions,
    report::Report,
    run::{
        ended_entry,
        signals::{Signals, Wish},
    },
    spool::Items,
    style, terminal,
};
use feed::{Batches, Feeder};
use schemas::{
    fact::LostEntry,
    id::WorkId,
    indices::Indices,
    outcome::{Ending, IndexState, WorkState, reason},
    request::{Follow, Followed, Submitted},
    work::{Array, Run as Runner, Submit},
};
use show::{Shape, Show};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const SUBMIT_PATIENCE: Duration = Duration::from_secs(10);

/// Run a command once for each line of a list, on all machines at once
///
/// `longhouse map -- gzip -k {item} < list`: the list comes from standard input, one item a line,
/// empty lines are passed over. `{item}` and `{index}` are replaced in the command. What each
/// writes comes out whole when it has ended. A list may have millions of lines.
#[derive(Debug, clap::Args)]
pub(crate) struct Map {
    /// The program and its arguments; never handed to a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", value_hint = clap::ValueHint::CommandWithArguments)]
    argv: Vec<String>,
    /// Items end with a NUL, not with a line
    #[arg(short = '0', long)]
    null: bool,
    /// Begin each line of output with its item and a tab
    #[arg(long)]
    tag: bool,
    /// Print in the order of the list
    #[arg(long)]
    in_order: bool,
    #[command(flatten)]
    job: JobOptions,
}

impl Map {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let submit = self.job.submit(&self.argv, app)?;
        if submit.run.as_ref().is_some_and(are_the_same) {
            terminal::say(
                "there is no `{item}` in the command: every job is the same, unless it reads \
                 LONGHOUSE_ITEM by itself",
            );
        }
        let shape = Shape { tag: self.tag, in_order: self.in_order, json: app.json };
        if terminal::stdin_is_terminal() {
            terminal::say("reading the list from the terminal, one item a line; Ctrl-D ends it");
        }
        let mut batches = Batches::read(std::io::stdin(), if self.null { 0 } else { b'\n' });
        let house = app.house().await?;
        let mut signals = Signals::listen()?;
        let first = tokio::select! {
            first = batches.next() => first?,
            _ = signals.next() => return Ok(Report::nothing().with_code(exit::CANCELLED)),
        };
        let Some(first) = first else {
            terminal::say("the list is empty: nothing to do");
            return Ok(Report::nothing());
        };
        let items = Arc::new(Mutex::new(Items::new()?));
        lock(&items).push_all(&first.items)?;
        let name = submit.name.clone();
        let work = begin(&house, submit, first.items, first.is_last).await?;
        let feeder = (!first.is_last).then(|| Feeder::start(&house, work, batches, items.clone()));
        let called = style::called(&name, work);
        let show = Show::new(items.clone(), shape)?;
        Mapping {
            house,
            work,
            called,
            items,
            show,
            feeder,
            done: Indices::new(),
            failed: Failed::default(),
        }
        .follow(signals)
        .await
    }
}

/// Whether nothing in a command and its variables tells its jobs apart.
fn are_the_same(run: &Runner) -> bool {
    let Runner::Process(process) = run else { return false };
    let marks = ["{item}", "{index}", "LONGHOUSE_ITEM", "LONGHOUSE_INDEX"];
    let mut words = process.argv.iter().chain(process.env.values());
    !words.any(|word| marks.iter().any(|mark| word.contains(mark)))
}

/// Items are only touched for a moment, and never across a wait.
fn lock(items: &Mutex<Items>) -> std::sync::MutexGuard<'_, Items> {
    items.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Submits the work with its first items; more follow unless it is the last.
async fn begin(
    house: &House,
    mut submit: Submit,
    items: Vec<Arc<str>>,
    is_last: bool,
) -> anyhow::Result<WorkId> {
    submit.array = Some(Array { count: None, items: Some(items) });
    submit.open = !is_last;
    let work = submit.work.expect("it is made with an id");
    let submitted: Submitted = house
        .patiently("submit", &submit, Some(SUBMIT_PATIENCE))
        .await
        .map_err(|error| perhaps_done(error, work))?;
    Ok(submitted.work)
}

/// Which indices failed: all of them counted, the first ones named.
#[derive(Debug, Default)]
struct Failed {
    count: u64,
    first: Vec<(u32, String)>,
    /// Not failed, but not finished either.
    cancelled: u64,
}

/// So many failures are named.
const NAMED: usize = 20;

impl Failed {
    fn add(&mut self, index: u32, ending: &Ending) {
        self.count += 1;
        if self.first.len() < NAMED {
            let why =
                crate::outcome::said_why(ending.why.as_deref(), ending.exit_code, ending.signal);
            let mut why = why.unwrap_or_else(|| ending.state.to_string());
            if let Some(node) = &ending.node {
                why.push_str(&format!(" (on {node})"));
            }
            self.first.push((index, why));
        }
    }
}

/// A map that goes on.
struct Mapping {
    house: House,
    work: WorkId,
    /// What it is called in sentences.
    called: String,
    items: Arc<Mutex<Items>>,
    show: Show,
    feeder: Option<Feeder>,
    done: Indices,
    failed: Failed,
}

impl Mapping {
    async fn follow(mut self, mut signals: Signals) -> anyhow::Result<Report> {
        let work = self.work;
        let request =
            Follow { work: work.to_string(), task: None, index: None, from: None, pace: false };
        let mut following = Following::start(&self.house, request);
        loop {
            tokio::select! {
                step = following.next() => match step? {
                    Some(Step::Piece(piece, ack)) => {
                        if let Err(error) = self.piece(*piece) {
                            return self.broken(error).await;
                        }
                        following.ack(ack).await;
                    }
                    Some(Step::Ended(summary)) => return self.ended(summary.state).await,
                    None => {
                        return Err(Failure::new(
                            exit::LOST,
                            format!("the manager said no more about {work}"),
                        )
                        .into());
                    }
                },
                fed = Feeder::ended(&mut self.feeder) => {
                    if let Err(error) = fed {
                        return self.broken(error).await;
                    }
                }
                wish = signals.wish(&self.called) => match wish {
                    Wish::GoOn => {}
                    Wish::Cancel => self.cancel(),
                    Wish::Detach => return self.detach(),
                    Wish::Leave => return Ok(Report::nothing().with_code(exit::CANCELLED)),
                },
            }
        }
    }

    fn piece(&mut self, piece: Followed) -> anyhow::Result<()> {
        if let Some(output) = piece.output
            && (self.show.awaits(output.index) || !self.done.contains(output.index))
        {
            self.show.output(output)?;
        }
        let Some(fact) = piece.fact else { return Ok(()) };
        if let Some(entry) = ended_entry(&fact) {
            return match entry.again_s {
                None => self.end(&entry.indices, entry.attempt, entry.ending),
                Some(_) => self.show.again(&entry),
            };
        }
        if fact.kind == "lost"
            && let Ok(entry) = serde_json::from_value::<LostEntry>(fact.body)
            && entry.again_s.is_none()
        {
            let mut ending = Ending::because(IndexState::Failed, reason::LOST, entry.why);
            ending.node = Some(entry.node);
            return self.end(&entry.indices, entry.attempt, ending);
        }
        Ok(())
    }

    /// Some indices have ended for good.
    fn end(&mut self, indices: &Indices, attempt: u32, ending: Ending) -> anyhow::Result<()> {
        let fresh = indices.difference(&self.done);
        self.done.insert_all(&fresh);
        for index in fresh.iter() {
            match ending.state {
                IndexState::Finished => {}
                IndexState::Cancelled => self.failed.cancelled += 1,
                _ => self.failed.add(index, &ending),
            }
            self.show.end(index, attempt, ending.clone())?;
        }
        self.show.progress(lock(&self.items).len(), self.done.len(), self.failed.count);
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(feeder) = &mut self.feeder {
            feeder.stop();
        }
        let (house, work) = (self.house.clone(), self.work);
        tokio::spawn(async move {
            let asked = cancel::change(&house, "cancel", work.to_string(), None).await;
            if let Err(error) = asked {
                terminal::say(&format!("could not cancel {work}: {error}"));
            }
        });
    }

    fn detach(&self) -> anyhow::Result<Report> {
        let work = self.work;
        if self.feeder.is_some() {
            return Err(Failure::new(
                exit::FAILED,
                format!("left before the whole list was sent; {work} stays open for an hour"),
            )
            .hint(format!("`longhouse cancel {work}` ends it"))
            .into());
        }
        terminal::say(&format!("detached; `longhouse results {work}` shows how it ends"));
        Ok(Report::nothing())
    }

    /// It cannot go on here: what was begun is ended.
    async fn broken(&mut self, error: anyhow::Error) -> anyhow::Result<Report> {
        self.show.clear();
        let patience = Some(Duration::from_secs(5));
        let asked = cancel::change(&self.house, "cancel", self.work.to_string(), patience).await;
        if let Err(error) = asked {
            tracing::warn!(work = %self.work, %error, "could not cancel");
        }
        Err(error)
    }

    async fn ended(mut self, state: WorkState) -> anyhow::Result<Report> {
        self.show.rest()?;
        self.show.clear();
        for (index, why) in &self.failed.first {
            let item = lock(&self.items).get(*index).unwrap_or_default();
            terminal::note(&format!("failed: {item} (index {index}): {why}"));
        }
        let more = self.failed.count.saturating_sub(self.failed.first.len() as u64);
        if more > 0 {
            terminal::note(&format!("… and {more} more: longhouse results {} --failed", self.work));
        }
        let total = lock(&self.items).len();
        let cancelled = self.failed.cancelled + total.saturating_sub(self.done.len());
        if state != WorkState::Finished {
            let bad = style::thousands(self.failed.count + cancelled);
            let some = match cancelled {
                0 => String::new(),
                n => format!(" ({} cancelled)", style::thousands(n)),
            };
            terminal::say(&format!(
                "{bad} of {} did not finish{some}",
                style::count(total, "item")
            ));
        }
        Ok(Report::nothing().with_code(crate::outcome::work_code(state)))
    }
}
