//! Figures: medians, spreads, ratios, a table for people and JSON for programs; and what a process
//! takes of this machine.

use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write};

/// The value below which `share` of all lie.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[at]
}

/// The median of several runs, with the smallest and the largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        Self {
            median: quantile(values, 0.5),
            min: quantile(values, 0.0),
            max: quantile(values, 1.0),
        }
    }

    fn text(self) -> String {
        if self.min == self.max {
            return number(self.median);
        }
        format!("{} ({}–{})", number(self.median), number(self.min), number(self.max))
    }

    fn json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// One figure.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    ours: Spread,
    beside: Option<(&'static str, Spread, Spread)>,
    aim: &'static str,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, ours: Spread) -> Self {
        Self { what: what.into(), unit, ours, beside: None, aim: "" }
    }

    /// The same measured of something else in the same run, and the ratio round by round.
    pub(crate) fn beside(mut self, name: &'static str, theirs: Spread, ratio: Spread) -> Self {
        self.beside = Some((name, theirs, ratio));
        self
    }

    pub(crate) fn aim(mut self, aim: &'static str) -> Self {
        self.aim = aim;
        self
    }
}

/// All figures of a run.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn markdown(&self) -> String {
        let mut out = String::from(
            "| what | unit | median (min–max) | beside | ratio | aim |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let (beside, ratio) = match row.beside {
                Some((name, theirs, ratio)) => (format!("{name}: {}", theirs.text()), ratio.text()),
                None => (String::new(), String::new()),
            };
            let (what, unit, ours, aim) = (&row.what, row.unit, row.ours.text(), row.aim);
            let _ = writeln!(out, "| {what} | {unit} | {ours} | {beside} | {ratio} | {aim} |");
        }
        out
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "what": row.what,
                "unit": row.unit,
                "ours": row.ours.json(),
                "beside": row.beside.map(|(name, theirs, ratio)| json!({
                    "name": name, "theirs": theirs.json(), "ratio": ratio.json(),
                })),
                "aim": row.aim,
            })
        });
        rows.collect()
    }

    /// The page that is kept.
    pub(crate) fn page(&self) -> String {
        format!(
            "# Results\n\nWritten by `cargo bench --bench first_light -- --save`. Medians of several runs, \
             smallest and largest in brackets; compare only ratios between machines.\n\nMachine: {}.\n\n{}\n{READING}\n\
             The same for programs:\n\n```json\n{}\n```\n",
            machine(),
            self.markdown(),
            serde_json::to_string_pretty(&self.json()).unwrap()
        )
    }
}

/// What a reader of the page should know; measured by hand where it is not in the table.
const READING: &str = "\
Reading them: an array with one text for all is said as ranges all the way (request, report, fact), so that row shows
what equal outcomes cost and not what 100,000 different ones do; the rows with each its own text do. Those lie at the aim
and, in the larger array, a few per cent below it: each outcome is written and read as JSON or MessagePack six times
between the keeper and the last fold. The largest delay of a written line is its first, which waits for the follow to be
set up. From `git clone` with nothing cached (no crates, no server) to the first result of the demo it took 10 min 38 s
on these two cores while they were also used for other builds; the demo itself 16 s of it.
";

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = model.map_or("unknown processor", |(_, name)| name);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}", kernel.trim())
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Its proportional share of resident memory.
    pub(crate) memory_mb: f64,
    /// Its processor time since its start.
    pub(crate) cpu_s: f64,
}

/// A process with its descendants: their names by process id.
pub(crate) fn family(root: i32) -> BTreeMap<i32, String> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| {
            rest.split(' ').nth(1).and_then(|parent| parent.parse::<i32>().ok())
        });
        parents.insert(pid, parent.unwrap_or(0));
    }
    let mut family = BTreeMap::new();
    for &pid in parents.keys() {
        let mut at = pid;
        while at != root && at > 1 {
            at = parents.get(&at).copied().unwrap_or(0);
        }
        if at == root {
            family.insert(pid, name(pid));
        }
    }
    family
}

fn name(pid: i32) -> String {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split('\0');
    let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let first = words.next().unwrap_or_default();
    let first = if first.starts_with('-') { "" } else { first };
    format!("`{}`", format!("{program} {first}").trim())
}

/// What each process takes now.
pub(crate) fn usage(family: &BTreeMap<i32, String>) -> BTreeMap<i32, Usage> {
    family.keys().map(|&pid| (pid, usage_of(pid))).collect()
}

fn usage_of(pid: i32) -> Usage {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib: f64 = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse().ok())
        .unwrap_or(0.0);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    // Linux counts these in hundredths of a second for every program.
    Usage { memory_mb: kib * 1024.0 / 1e6, cpu_s: (ticks(11) + ticks(12)) / 100.0 }
}
