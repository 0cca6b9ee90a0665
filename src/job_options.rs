//! What `run` and `map` have in common: the options that say what a job needs.

use crate::{
    app::App,
    failure::Failure,
    parse::{self, Memory, Variable},
};
use schemas::{
    amount::Cpus,
    id::WorkId,
    time::Seconds,
    token::{NodeName, SiteName},
    work::{OneOrMany, Process, Resources, Run, Submit, Where},
};
use std::collections::BTreeMap;

/// A command of so many characters is a name; of a longer one the beginning is.
const LONGEST_NAME: usize = 40;

/// Options of one job.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Job")]
pub(crate) struct JobOptions {
    /// What people shall call it [default: the beginning of the command]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Cores it takes, such as 2 or 0.5 [default: 1]
    #[arg(long, value_name = "N", value_parser = parse::cpus)]
    cpus: Option<Cpus>,
    /// Memory it takes, such as 512M or 2G
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<Memory>,
    /// Graphics cards it takes; it sees only its own
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    gpus: u64,
    /// How long it may run, such as 90s or 1h30m
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    timeout: Option<Seconds>,
    /// How often it is tried again when it fails [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    retries: u32,
    /// An environment variable; KEY alone takes the value that it has here
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    env: Vec<Variable>,
    /// Only on this node; may be given more than once
    #[arg(long, value_name = "NODE", add = crate::completion::nodes())]
    node: Vec<NodeName>,
    /// Only at this site; may be given more than once
    #[arg(long, value_name = "SITE")]
    site: Vec<SiteName>,
    /// Higher goes first, -100 to 100 [default: 0]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    priority: i32,
}

impl JobOptions {
    /// A work of one task that runs `argv`, with an id of its own.
    pub(crate) fn submit(&self, argv: &[String], app: &App) -> anyhow::Result<Submit> {
        let place = Where { node: one_or_many(&self.node), site: one_or_many(&self.site) };
        let resources = Resources {
            cpus: self.cpus,
            memory_mib: self.memory.map_or(0, |memory| memory.mib),
            gpus: self.gpus,
            ..Resources::default()
        };
        Ok(Submit {
            work: Some(fresh_work()),
            name: self.name.clone().unwrap_or_else(|| name_of(argv)),
            pool: Some(app.settings().pool.clone()),
            priority: self.priority,
            run: Some(Run::Process(Process {
                argv: argv.to_vec(),
                env: self.variables(app)?,
                stdin: None,
            })),
            resources: Some(resources),
            place: Some(place),
            retries: Some(self.retries),
            timeout_s: self.timeout,
            ..Submit::default()
        })
    }

    fn variables(&self, app: &App) -> anyhow::Result<BTreeMap<String, String>> {
        let mut out = BTreeMap::new();
        for Variable { name, value } in &self.env {
            let value = match value {
                Some(value) => value.clone(),
                None => app
                    .environment
                    .get(name)
                    .ok_or_else(|| {
                        Failure::usage(format!("`-e {name}`: there is no such variable here"))
                            .hint(format!("give its value: `-e {name}=VALUE`"))
                    })?
                    .to_owned(),
            };
            out.insert(name.clone(), value);
        }
        Ok(out)
    }
}

/// What a work is called when nobody says how: the beginning of its command.
fn name_of(argv: &[String]) -> String {
    let words: Vec<&str> = argv.iter().flat_map(|word| word.split_whitespace()).collect();
    let line = words.join(" ");
    let plain = line.chars().filter(|c| !c.is_control());
    if line.chars().count() <= LONGEST_NAME {
        return plain.collect();
    }
    let mut name: String = plain.take(LONGEST_NAME - 1).collect();
    name.push('…');
    name
}

/// A new id of a work; ids sort by the time at which they were made.
pub(crate) fn fresh_work() -> WorkId {
    WorkId(uuid::Uuid::now_v7())
}

fn one_or_many<T: Clone>(names: &[T]) -> Option<OneOrMany<T>> {
    match names {
        [] => None,
        [one] => Some(OneOrMany::One(one.clone())),
        many => Some(OneOrMany::Many(many.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_without_a_name_is_called_by_its_command() {
        let name =
            |words: &[&str]| name_of(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(name(&["uname", "-a"]), "uname -a");
        assert_eq!(name(&["sh", "-c", "one\n\ttwo\x1b"]), "sh -c one two");
        let long = name(&["echo", &"x".repeat(500)]);
        assert_eq!(long.chars().count(), LONGEST_NAME);
        assert!(long.ends_with('…'));
    }
}
