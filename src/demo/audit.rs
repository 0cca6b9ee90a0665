//! The audit, as any client would do it: one work of two tasks, followed to its end.

use crate::{
    client::House,
    follow::{Following, Step},
    job_options::fresh_work,
    outcome::work_code,
    results::page,
    send, style, terminal,
};
use anyhow::Context;
use comfy_table::Cell;
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::OwoColorize;
use schemas::{
    amount::Cpus,
    fact::EndedEntry,
    outcome::Summary,
    output::Output,
    request::{Follow, Results},
    token::TaskName,
    work::{Array, OutputFile, Process, Resources, Run, Submit, Task},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const AUDIT: &str = include_str!("audit.sh");
const MERGE: &str = include_str!("merge.sh");
/// So many of the last lines are shown.
const LAST_LINES: usize = 4;

/// What an audit found in one folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    name: String,
    files: u64,
    code: u64,
    comment: u64,
    blank: u64,
    #[serde(rename = "unsafe")]
    unsafe_blocks: u64,
    longest_line: u64,
    largest_file: String,
    largest_bytes: u64,
}

/// What it found in all of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Totals {
    folders: u64,
    files: u64,
    code: u64,
    comment: u64,
    blank: u64,
    #[serde(rename = "unsafe")]
    unsafe_blocks: u64,
    longest_line: u64,
    longest_line_in: String,
    largest_file: String,
    largest_bytes: u64,
}

/// What the second task made of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Merged {
    largest: Vec<Row>,
    most_unsafe: Vec<Row>,
    totals: Totals,
}

/// The result of the demo.
pub(super) struct Audited {
    summary: Summary,
    merged: Option<Merged>,
    jobs: BTreeMap<String, u64>,
}

fn name(text: &str) -> TaskName {
    TaskName::new(text).expect("it is a name")
}

/// A work of two tasks: one job for each folder, and one that needs them all.
fn work(items: &[PathBuf], shared: &Path) -> anyhow::Result<Submit> {
    let shared = shared.to_str().context("the temporary folder's name is no text")?;
    let shell = |script: &str, arguments: &[&str]| {
        let mut argv = vec!["sh", "-c", script, "audit"];
        argv.extend(arguments);
        Run::Process(Process {
            argv: argv.into_iter().map(str::to_owned).collect(),
            env: BTreeMap::new(),
            stdin: None,
        })
    };
    let texts: Vec<Arc<str>> = items
        .iter()
        .map(|item| item.to_str().map(Arc::from).context("a folder's name is no text"))
        .collect::<Result<_, _>>()?;
    let output = |name: &str| OutputFile { name: name.into(), path: format!("{name}.json") };
    let task = |task: &str, run, needs: &[&str]| Task {
        name: name(task),
        needs: needs.iter().map(|need| name(need)).collect(),
        run,
        array: None,
        inputs: Vec::new(),
        outputs: Vec::new(),
        resources: Resources { cpus: Some(Cpus::new(1)), ..Resources::default() },
        place: Default::default(),
        retries: 1,
        lost: Default::default(),
        timeout_s: None,
        env_from_node: Vec::new(),
        lifetime: Default::default(),
        output: Default::default(),
    };
    let audit = Task {
        array: Some(Array { count: None, items: Some(texts) }),
        outputs: vec![output("audit")],
        ..task("audit", shell(AUDIT, &["{item}", "{index}", shared]), &[])
    };
    let merge = Task {
        outputs: vec![output("report")],
        ..task("merge", shell(MERGE, &[shared]), &["audit"])
    };
    Ok(Submit {
        work: Some(fresh_work()),
        name: "demo: audit".to_owned(),
        tasks: Some(vec![Arc::new(audit), Arc::new(merge)]),
        ..Submit::default()
    })
}

/// Submits the audit and follows it to its end.
pub(super) async fn audit(
    house: &House,
    items: &[PathBuf],
    shared: &Path,
) -> anyhow::Result<Audited> {
    let submitted =
        send::submit(house, work(items, shared)?, Some(Duration::from_secs(10))).await?;
    let work = submitted.work.to_string();
    terminal::say(&format!("auditing {}", style::count(items.len() as u64, "folder")));
    let request = Follow { work: work.clone(), task: None, index: None, from: None, pace: false };
    let mut following = Following::start(house, request);
    let mut view = View::new(items.len() as u64 + 1)?;
    let mut summary = None;
    while let Some(step) = following.next().await? {
        match step {
            Step::Piece(piece, ack) => {
                if let Some(output) = &piece.output {
                    view.output(output);
                }
                if let Some(entry) = piece.fact.as_ref().and_then(crate::run::ended_entry) {
                    view.ended(&entry);
                }
                following.ack(ack).await;
            }
            Step::Ended(end) => summary = Some(*end),
        }
    }
    view.bar.finish_and_clear();
    let summary = summary.context("the manager said no more about the audit")?;
    let (merged, jobs) = results(house, &work).await?;
    Ok(Audited { summary, merged, jobs })
}

/// What is seen while it runs.
struct View {
    bar: ProgressBar,
    last: VecDeque<String>,
}

impl View {
    fn new(total: u64) -> anyhow::Result<Self> {
        let bar = if terminal::stderr_is_terminal() {
            ProgressBar::new(total)
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(ProgressStyle::with_template(
            "{bar:40.cyan} {pos}/{len} {elapsed}\n{msg:.dim}",
        )?);
        Ok(Self { bar, last: VecDeque::new() })
    }

    fn lines(&mut self, text: &str) {
        for line in text.lines() {
            self.last.push_back(format!("  {line}"));
        }
        while self.last.len() > LAST_LINES {
            self.last.pop_front();
        }
        self.bar.set_message(self.last.iter().cloned().collect::<Vec<_>>().join("\n"));
    }

    fn output(&mut self, output: &Output) {
        if output.offset == 0 {
            self.lines(&crate::logs::text_of(output));
        }
    }

    fn ended(&mut self, entry: &EndedEntry) {
        if entry.again_s.is_none() {
            self.bar.inc(entry.indices.len());
        }
    }
}

/// The merged report, and how many jobs each node ran.
async fn results(
    house: &House,
    work: &str,
) -> anyhow::Result<(Option<Merged>, BTreeMap<String, u64>)> {
    let mut request =
        Results { work: work.to_owned(), task: None, from: None, limit: None, only: None };
    let (mut merged, mut jobs) = (None, BTreeMap::new());
    loop {
        let page = page(house, &request).await?;
        for outcome in page.items {
            if let Some(node) = &outcome.node {
                *jobs.entry(node.to_string()).or_default() += 1;
            }
            if let Some(report) = outcome.outputs.get("report") {
                let read = serde_json::from_slice(report.as_ref());
                merged = Some(read.context("the report of the second task cannot be read")?);
            }
        }
        request.from = page.next;
        if request.from.is_none() {
            return Ok((merged, jobs));
        }
    }
}

impl Audited {
    pub(super) fn code(&self) -> u8 {
        work_code(self.summary.state)
    }

    pub(super) fn as_json(&self, took_ms: u64) -> Value {
        json!({
            "summary": self.summary,
            "report": self.merged,
            "jobs_by_node": self.jobs,
            "audit_ms": self.audit_ms(),
            "demo_ms": took_ms,
        })
    }

    fn audit_ms(&self) -> u64 {
        let ended = self.summary.ended_at.unwrap_or(self.summary.submitted_at);
        ended.0.saturating_sub(self.summary.submitted_at.0)
    }

    /// As a person reads it.
    pub(super) fn told(&self, took_ms: u64) -> String {
        let mut out = String::new();
        match &self.merged {
            Some(merged) => tell(merged, &mut out),
            None => {
                let now = self.summary.submitted_at;
                let shown = crate::show::Shown { summary: &self.summary, now };
                let _ = write!(out, "{shown}");
            }
        }
        let jobs: Vec<String> = self
            .jobs
            .iter()
            .map(|(node, jobs)| format!("{} on {node}", style::thousands(*jobs)))
            .collect();
        let all: u64 = self.jobs.values().sum();
        let _ = writeln!(
            out,
            "\n{} ({}) in {}; the whole demo took {}",
            style::count(all, "job").bold(),
            jobs.join(", "),
            style::span(self.audit_ms()),
            style::span(took_ms),
        );
        out
    }
}

fn tell(merged: &Merged, out: &mut String) {
    let _ = writeln!(out, "{}\n{}", "The ten largest".bold(), largest(&merged.largest));
    let _ =
        writeln!(out, "{}\n{}", "The ten with most `unsafe`".bold(), unsafest(&merged.most_unsafe));
    let Totals { folders, files, code, comment, blank, unsafe_blocks, .. } = merged.totals;
    let number = style::thousands;
    let _ = writeln!(
        out,
        "{}: {} folders, {} files, {} lines of code, {} of comment, {} blank, {} `unsafe` blocks",
        "All".bold(),
        number(folders),
        number(files),
        number(code),
        number(comment),
        number(blank),
        number(unsafe_blocks),
    );
    let _ = writeln!(
        out,
        "the longest line has {} characters ({}); the largest file is {} ({})",
        number(merged.totals.longest_line),
        merged.totals.longest_line_in,
        merged.totals.largest_file,
        style::size(merged.totals.largest_bytes),
    );
}

fn largest(rows: &[Row]) -> String {
    let heads = ["CRATE", "FILES", "CODE", "COMMENT", "BLANK", "LONGEST LINE", "LARGEST FILE"];
    let mut table = style::table(&heads);
    for row in rows {
        table.add_row(vec![
            Cell::new(&row.name),
            style::number(style::thousands(row.files)),
            style::number(style::thousands(row.code)),
            style::number(style::thousands(row.comment)),
            style::number(style::thousands(row.blank)),
            style::number(style::thousands(row.longest_line)),
            Cell::new(format!("{} ({})", row.largest_file, style::size(row.largest_bytes))),
        ]);
    }
    style::lines(&table)
}

fn unsafest(rows: &[Row]) -> String {
    let mut table = style::table(&["CRATE", "UNSAFE", "CODE", "CODE PER UNSAFE"]);
    for row in rows {
        let per = row.code.checked_div(row.unsafe_blocks).unwrap_or(0);
        table.add_row(vec![
            Cell::new(&row.name),
            style::number(style::thousands(row.unsafe_blocks)),
            style::number(style::thousands(row.code)),
            style::number(style::thousands(per)),
        ]);
    }
    style::lines(&table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::work::check;
    use std::process::Command;

    #[test]
    fn the_work_is_one_that_a_manager_takes() {
        let submit = work(&["/a b".into(), "/c".into()], Path::new("/shared")).unwrap();
        let spec = check::normalise(submit).unwrap();
        check::check(&spec).unwrap();
        assert_eq!(spec.tasks[0].count(), 2);
        assert_eq!(spec.tasks[1].needs, [name("audit")]);
    }

    /// Runs the very scripts that the jobs run, as they would.
    #[test]
    fn the_scripts_count_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, scratch) = (dir.path().join("shared"), dir.path().join("scratch"));
        for folder in [&shared, &scratch] {
            std::fs::create_dir(folder).unwrap();
        }
        let source =
            "// comment\n\n/* two\nlines */\nfn a() {\n    unsafe { b() } // unsafe { no }\n}\n";
        for (n, name) in ["one crate", "two\"quotes"].iter().enumerate() {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("a file.rs"), source.repeat(n + 1)).unwrap();
            std::fs::write(folder.join("big.bin"), vec![0xff; 1000 * (n + 1)]).unwrap();
            let ran = Command::new("sh")
                .args(["-c", AUDIT, "audit"])
                .arg(&folder)
                .arg(n.to_string())
                .arg(&shared)
                .current_dir(&scratch)
                .output()
                .unwrap();
            assert!(ran.status.success(), "{ran:?}");
        }
        let row: Row =
            serde_json::from_slice(&std::fs::read(scratch.join("audit.json")).unwrap()).unwrap();
        assert_eq!((row.code, row.comment, row.blank, row.unsafe_blocks), (6, 6, 2, 2));
        assert_eq!((row.largest_file.as_str(), row.largest_bytes), ("big.bin", 2000));

        let ran = Command::new("sh")
            .args(["-c", MERGE, "merge"])
            .arg(&shared)
            .current_dir(&scratch)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        let report = std::fs::read(scratch.join("report.json")).unwrap();
        let merged: Merged = serde_json::from_slice(&report).unwrap();
        let names: Vec<_> = merged.largest.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["two?quotes", "one crate"]);
        assert_eq!((merged.totals.folders, merged.totals.code), (2, 9));
        assert_eq!(merged.totals.unsafe_blocks, 3);
        let text = anstream::adapter::strip_str(&{
            let mut out = String::new();
            tell(&merged, &mut out);
            out
        })
        .to_string();
        assert!(text.contains("All: 2 folders, 2 files, 9 lines of code"), "{text}");
    }
}
