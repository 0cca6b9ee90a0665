//! `longhouse completion`: scripts for shells, which ask this program for words.

use crate::{command_line, config::Environment, report::Report, style};
use clap_complete::{
    ArgValueCompleter, CompletionCandidate,
    env::{CompleteEnv, Shells},
};
use schemas::request::{List, Nodes, NodesReply, Works};
use std::{ffi::OsStr, time::Duration};

/// Names of works and nodes that do not come so fast are not offered.
const PATIENCE: Duration = Duration::from_millis(500);

/// Print the completion script of a shell
///
/// For bash: `source <(longhouse completion bash)` in ~/.bashrc; for zsh the same in ~/.zshrc; for
/// fish: `longhouse completion fish | source` in ~/.config/fish/config.fish.
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub(crate) fn run(self) -> anyhow::Result<Report> {
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        };
        let shells = Shells::builtins();
        let shell = shells.completer(name).expect("one of the shells that are built in");
        let program = std::env::current_exe()?;
        let mut script = Vec::new();
        let program = program.to_string_lossy();
        shell.write_registration("COMPLETE", "longhouse", "longhouse", &program, &mut script)?;
        Ok(Report::text(String::from_utf8(script)?))
    }
}

/// Answers a shell that asks for words, and ends; does nothing otherwise.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(command_line).complete();
}

/// Completes names of works.
pub(crate) fn works() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| begins_with(typed, work_words()))
}

/// Completes names of nodes.
pub(crate) fn nodes() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| begins_with(typed, node_words()))
}

fn begins_with(typed: &OsStr, words: Vec<(String, String)>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    words
        .into_iter()
        .filter(|(word, _)| word.starts_with(&*typed))
        .map(|(word, help)| CompletionCandidate::new(word).help(Some(help.into())))
        .collect()
}

fn work_words() -> Vec<(String, String)> {
    let mut out = vec![("@last".to_owned(), "the newest work".to_owned())];
    let works: Option<Works> = ask(async |house| {
        house.work("list", &List { limit: Some(50), ..List::default() }).await.ok()
    });
    for work in works.map(|works| works.works).unwrap_or_default() {
        let help = format!("{} {}", work.state, work.name);
        out.push((style::short(work.work), help));
    }
    out
}

fn node_words() -> Vec<(String, String)> {
    let reply: Option<NodesReply> =
        ask(async |house| house.sched("nodes", &Nodes::default()).await.ok());
    let nodes = reply.map(|reply| reply.nodes).unwrap_or_default();
    nodes.into_iter().map(|n| (n.node.to_string(), n.state.as_str().to_owned())).collect()
}

/// Asks the house, if it is there and quick.
fn ask<T>(question: impl AsyncFnOnce(&crate::client::House) -> Option<T>) -> Option<T> {
    let environment = Environment::take();
    let dir = crate::config::folder(None, &environment).ok()?;
    let config = crate::config::Config::read(&dir, &environment, &[]).ok()?;
    let app = crate::app::App { dir, config, environment, json: false, verbose: 0 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let answer = async { question(&app.house().await.ok()?).await };
        tokio::time::timeout(PATIENCE, answer).await.ok()?
    })
}
