//! `longhouse run`: one command on whichever machine has room, as if it ran here.

pub(crate) mod signals;

use crate::{
    app::App,
    cancel,
    client::{House, perhaps_done},
    failure::{Failure, exit},
    follow::{Following, Step},
    job_options::JobOptions,
    outcome::{End, ended_code, said_why, single_outcome},
    report::Report,
    streams::{News, Streams},
    style, terminal,
};
use schemas::{
    fact::{AssignedEntry, EndedEntry, LostEntry, ReturnedEntry},
    id::{Attempt, WorkId},
    outcome::Summary,
    request::{Explain, Explained, Follow, FollowedFact, RunReply, SingleOutcome, Submitted},
    work::{OutputPolicy, Run as Runner, WhenFull, check::MAX_STDIN},
};
use signals::{Signals, Wish};
use std::{io::Read, time::Duration};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::watch,
};

/// How long a submit is tried when nobody answers.
const SUBMIT_PATIENCE: Duration = Duration::from_secs(10);
/// Who waits longer than this is told why.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// The reason is looked at again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(3);

/// Run a command on whichever machine has room, and wait for it
///
/// What it writes comes out here, live and byte for byte; we end as it ends. Ctrl-C asks whether
/// to detach or to cancel; a second one cancels. Without a terminal SIGINT and SIGTERM cancel, and
/// SIGHUP detaches.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Give it our standard input, read whole before it starts, at most 512 KiB
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Print its id and do not wait
    #[arg(short, long)]
    detach: bool,
    /// The program and its arguments; never handed to a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", value_hint = clap::ValueHint::CommandWithArguments)]
    pub(crate) argv: Vec<String>,
    #[command(flatten)]
    job: JobOptions,
}

impl Run {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let mut submit = self.job.submit(&self.argv, app)?;
        if self.stdin
            && let Some(Runner::Process(process)) = &mut submit.run
        {
            let input = tokio::task::spawn_blocking(|| read_input(std::io::stdin())).await??;
            process.stdin = Some(input.into());
        }
        if !self.detach {
            submit.output = Some(OutputPolicy { full: WhenFull::Wait, ..OutputPolicy::default() });
        }
        let work = submit.work.expect("made above");

        let mut signals = Signals::listen()?;
        let house = app.house().await?;
        let submitted: Submitted = tokio::select! {
            answer = house.patiently("submit", &submit, Some(SUBMIT_PATIENCE)) => {
                answer.map_err(|error| perhaps_done(error, work))?
            }
            _ = signals.next() => return Ok(give_up(&house, work).await),
        };
        if self.detach {
            return Ok(Report::pair(submitted.work, &submitted));
        }
        let called = style::called(&submit.name, work);
        Attached { house: &house, work, called, json: app.json }.wait(signals).await
    }
}

/// Reads all of it, unless it is more than a work may hold.
fn read_input(input: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_STDIN as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_STDIN {
        return Err(Failure::usage(format!(
            "the input is more than {} KiB, which is all that `-i` can carry",
            MAX_STDIN / 1024
        ))
        .hint("put it where the command can read it, and give the command its path")
        .into());
    }
    Ok(bytes)
}

/// Somebody ended us while the work was being submitted: it may have been accepted.
async fn give_up(house: &House, work: WorkId) -> Report {
    let patience = Some(Duration::from_secs(2));
    // Unknown is as good as cancelled.
    let _ = cancel::change(house, "cancel", work.to_string(), patience).await;
    Report::nothing().with_code(exit::CANCELLED)
}

/// A job that is waited for.
struct Attached<'a> {
    house: &'a House,
    work: WorkId,
    /// What it is called in sentences.
    called: String,
    /// A program reads what we print: nothing live, one line at the end.
    json: bool,
}

impl Attached<'_> {
    async fn wait(&self, mut signals: Signals) -> anyhow::Result<Report> {
        let Self { house, work, json, .. } = *self;
        let (placed, seen) = watch::channel(false);
        let (out, err) = (tokio::io::stdout(), tokio::io::stderr());
        let mut relay = std::pin::pin!(relay(house, work, placed, !json, out, err));
        let tells = !json && terminal::stderr_is_terminal();
        let mut tell = std::pin::pin!(tell_why(house, work, seen));
        let mut told = !tells;
        loop {
            tokio::select! {
                ended = &mut relay => return self.finish(ended).await,
                () = &mut tell, if !told => told = true,
                wish = signals.wish(&self.called) => match wish {
                    Wish::GoOn => {}
                    Wish::Detach => {
                        terminal::say(&format!(
                            "detached; `longhouse logs -f {work}` shows it, `longhouse wait {work}` waits for it"
                        ));
                        return Ok(Report::nothing());
                    }
                    Wish::Cancel => {
                        let house = house.clone();
                        tokio::spawn(async move {
                            let asked = cancel::change(&house, "cancel", work.to_string(), None).await;
                            if let Err(error) = asked {
                                terminal::say(&format!("could not cancel {work}: {error}"));
                            }
                        });
                    }
                    Wish::Leave => {
                        terminal::say(&format!("left; it is being cancelled: `longhouse show {work}`"));
                        return Ok(Report::nothing().with_code(exit::CANCELLED));
                    }
                },
            }
        }
    }

    async fn finish(
        &self,
        ended: anyhow::Result<(Summary, Option<End>)>,
    ) -> anyhow::Result<Report> {
        let Self { house, work, json, .. } = *self;
        match ended {
            Ok((summary, end)) => {
                let code = match &end {
                    Some(end) => end.code(),
                    None => ended_code(house, &summary).await?,
                };
                if json {
                    let outcome = single_outcome(house, &summary).await?.map(SingleOutcome::from);
                    return Ok(Report::pair("", &RunReply { summary, outcome }).with_code(code));
                }
                if let Some(why) = worth_saying(code, &summary) {
                    terminal::say(&why);
                }
                Ok(Report::nothing().with_code(code))
            }
            Err(error) => {
                if Failure::of(&error).code == exit::READER_GONE {
                    // As if its own output had been closed.
                    let patience = Some(Duration::from_secs(5));
                    let _ = cancel::change(house, "cancel", work.to_string(), patience).await;
                }
                Err(error)
            }
        }
    }
}

/// What ended by itself says so itself; what the house did to it must be said.
fn worth_saying(code: u8, summary: &Summary) -> Option<String> {
    let is_ours = matches!(code, exit::LOST | exit::TIMED_OUT | 126 | 127);
    let why = summary.tasks.iter().flat_map(|t| &t.first_failures).find_map(|f| f.why.as_ref());
    is_ours.then(|| why.or(summary.why.as_ref()).cloned()).flatten()
}

/// Passes on what the job writes, where it is wanted live, until it has ended and everything was
/// written.
async fn relay(
    house: &House,
    work: WorkId,
    placed: watch::Sender<bool>,
    live: bool,
    mut out: impl AsyncWrite + Unpin,
    mut err: impl AsyncWrite + Unpin,
) -> anyhow::Result<(Summary, Option<End>)> {
    let request =
        Follow { work: work.to_string(), task: None, index: None, from: None, pace: true };
    let mut following = Following::start(house, request);
    let mut streams = Streams::default();
    let (mut end, mut attempts) = (None, Attempts::default());
    while let Some(step) = following.next().await? {
        let (piece, ack) = match step {
            Step::Piece(piece, ack) => (piece, ack),
            Step::Ended(summary) => return Ok((*summary, end)),
        };
        let mut news = Vec::new();
        if let Some(output) = piece.output {
            news.extend(streams.output(output));
        }
        if let Some(fact) = piece.fact {
            if fact.kind != "accepted" {
                placed.send_replace(true);
            }
            if live && let Some(sentence) = attempts.fact(&fact) {
                terminal::say(&sentence);
            }
            if let Some(entry) = ended_entry(&fact) {
                for index in entry.indices.iter() {
                    news.extend(streams.ended(&entry.task, index, entry.attempt, &entry.ending));
                }
                match entry.again_s {
                    None => end = Some(End::from(&entry.ending)),
                    Some(after) if live => tell_again(&entry, after),
                    Some(_) => {}
                }
            }
        }
        for piece in news.into_iter().filter(|_| live) {
            write(&piece, &mut out, &mut err).await?;
        }
        following.ack(ack).await;
    }
    Err(Failure::new(exit::LOST, format!("the manager said no more about {work}"))
        .hint(format!("`longhouse wait {work}` goes on waiting"))
        .into())
}

/// Which attempt it is: what a new one writes follows what the old one wrote, and only a sentence
/// tells them apart.
#[derive(Debug, Default)]
struct Attempts {
    /// The newest that was given to a node.
    newest: Attempt,
    /// What became of the one before.
    before: Option<Before>,
}

/// How an attempt was over before its time.
#[derive(Debug)]
enum Before {
    Lost(String),
    Failed(String),
    /// It never ran, and wrote nothing.
    Returned,
}

impl Attempts {
    /// What is to be said of a fact: a new attempt, once.
    fn fact(&mut self, fact: &FollowedFact) -> Option<String> {
        match &*fact.kind {
            "lost" => self.before = Some(Before::Lost(body::<LostEntry>(fact)?.why)),
            "returned" => {
                body::<ReturnedEntry>(fact)?;
                self.before = Some(Before::Returned);
            }
            "ended" => {
                let EndedEntry { ending, .. } = body(fact)?;
                let said = said_why(ending.why.as_deref(), ending.exit_code, ending.signal);
                let why = said.unwrap_or_else(|| ending.state.to_string());
                self.before = Some(Before::Failed(why));
            }
            "assigned" => return self.assigned(body::<AssignedEntry>(fact)?.attempt),
            _ => {}
        }
        None
    }

    fn assigned(&mut self, attempt: Attempt) -> Option<String> {
        let old = self.newest;
        // Followed anew, facts may be said again.
        if attempt <= old {
            return None;
        }
        self.newest = attempt;
        let before = self.before.take();
        let over = match before {
            _ if old == 0 => return None,
            Some(Before::Returned) => return None,
            Some(Before::Lost(why)) => format!("was lost ({why})"),
            Some(Before::Failed(why)) => format!("failed ({why})"),
            None => "is over".to_owned(),
        };
        Some(format!(
            "attempt {old} {over}; started again as attempt {attempt}, its output begins anew"
        ))
    }
}

/// The body of a fact; `None` where it cannot be read.
fn body<T: serde::de::DeserializeOwned>(fact: &FollowedFact) -> Option<T> {
    serde_json::from_value(fact.body.clone())
        .inspect_err(|error| tracing::warn!(%error, kind = fact.kind, "a fact cannot be read"))
        .ok()
}

/// The entry of a fact that attempts ended.
pub(crate) fn ended_entry(fact: &FollowedFact) -> Option<EndedEntry> {
    if fact.kind == "ended" { body(fact) } else { None }
}

async fn write(
    news: &News,
    out: &mut (impl AsyncWrite + Unpin),
    err: &mut (impl AsyncWrite + Unpin),
) -> anyhow::Result<()> {
    if news.missing > 0 {
        let stream = &news.source.stream;
        terminal::say(&format!("{} bytes of its {stream} were not kept", news.missing));
    }
    let bytes = news.bytes.as_ref();
    let written = match news.source.stream.as_str() {
        "stdout" => async { out.write_all(bytes).await.and(out.flush().await) }.await,
        "stderr" => async { err.write_all(bytes).await.and(err.flush().await) }.await,
        _ => Ok(()),
    };
    terminal::written(written)
}

fn tell_again(entry: &EndedEntry, after: schemas::time::Seconds) {
    if terminal::stderr_is_terminal() {
        let end = End::from(&entry.ending);
        let why = entry.ending.why.clone().unwrap_or_else(|| format!("exit code {}", end.code()));
        terminal::say(&format!("attempt {} failed ({why}); again in {after}", entry.attempt));
    }
}

/// Says why it waits, when it waits for long.
async fn tell_why(house: &House, work: WorkId, mut placed: watch::Receiver<bool>) {
    let request = Explain { work: Some(work), ..Explain::default() };
    let mut pause = TELL_AFTER;
    let mut last = String::new();
    loop {
        tokio::select! {
            changed = placed.wait_for(|placed| *placed) => {
                // Whether placed or gone: there is nothing to explain any more.
                drop(changed);
                return;
            }
            () = tokio::time::sleep(pause) => {}
        }
        pause = TELL_AGAIN;
        if let Ok(explained) = house.sched::<Explained>("explain", &request).await
            && explained.why != last
            && !*placed.borrow()
        {
            terminal::say(&explained.why);
            last = explained.why;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::Source;
    use schemas::{
        blob::Blob,
        token::{StreamName, TaskName},
    };

    #[test]
    fn input_beyond_the_limit_is_refused_with_a_sentence() {
        assert_eq!(read_input(&b"abc"[..]).unwrap(), b"abc");
        assert_eq!(read_input(&*vec![7; MAX_STDIN]).unwrap().len(), MAX_STDIN);
        let failure = Failure::of(&read_input(&*vec![7; MAX_STDIN + 1]).unwrap_err());
        assert_eq!(failure.code, exit::USAGE);
        assert!(failure.message.contains("512 KiB"), "{}", failure.message);
    }

    fn fact(kind: &str, attempt: Attempt, more: serde_json::Value) -> FollowedFact {
        let mut body = serde_json::json!({
            "work": "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f", "task": "main", "indices": [[0, 0]],
            "attempt": attempt, "node": "home",
            "instance": "0198f0c2-7b5e-7cc3-98c4-dc0c0c073990",
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        FollowedFact { kind: kind.to_owned(), at: schemas::time::Stamp(0), body }
    }

    #[test]
    fn a_new_attempt_is_said_once_with_what_became_of_the_old_one() {
        let mut attempts = Attempts::default();
        let none = serde_json::json!({});
        assert_eq!(attempts.fact(&fact("assigned", 1, none.clone())), None);
        let lost = serde_json::json!({"why": "home is silent", "again_s": 0});
        assert_eq!(attempts.fact(&fact("lost", 1, lost)), None);
        let said = attempts.fact(&fact("assigned", 2, none.clone())).unwrap();
        assert_eq!(
            said,
            "attempt 1 was lost (home is silent); started again as attempt 2, its output begins anew"
        );
        assert_eq!(attempts.fact(&fact("assigned", 2, none.clone())), None);

        let failed = serde_json::json!({"ending": {"state": "failed", "exit_code": 3}});
        assert_eq!(attempts.fact(&fact("ended", 2, failed)), None);
        let said = attempts.fact(&fact("assigned", 3, none.clone())).unwrap();
        assert!(said.starts_with("attempt 2 failed (exit code 3); started again"), "{said}");

        // What never ran wrote nothing that could be confused with what follows.
        let returned = serde_json::json!({"why": "no room", "after_s": 1});
        assert_eq!(attempts.fact(&fact("returned", 3, returned)), None);
        assert_eq!(attempts.fact(&fact("assigned", 4, none)), None);
    }

    #[tokio::test]
    async fn each_stream_goes_where_it_belongs_byte_for_byte() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let news = |stream: StreamName, bytes: &'static [u8]| News {
            source: Source { task: TaskName::main(), index: 0, attempt: 1, stream },
            missing: 0,
            bytes: Blob::from(bytes),
        };
        write(&news(StreamName::stdout(), b"a\xff\0b"), &mut out, &mut err).await.unwrap();
        write(&news(StreamName::stderr(), b"oh"), &mut out, &mut err).await.unwrap();
        let metrics = StreamName::new("metrics").unwrap();
        write(&news(metrics, b"1"), &mut out, &mut err).await.unwrap();
        assert_eq!((out.as_slice(), err.as_slice()), (&b"a\xff\0b"[..], &b"oh"[..]));
    }
}
