//! The `longhouse` command: every machine you own under one roof, with one door.
//!
//! One file per command. A command returns a [`report::Report`], which is printed here and nowhere
//! else; what comes live (output of jobs, progress) goes through [`terminal`].

mod app;
mod call;
mod cancel;
mod client;
mod completion;
mod config;
mod configuration;
mod connect;
mod demo;
mod doctor;
mod down;
mod drain;
mod env;
mod explain;
mod failure;
mod follow;
mod job_options;
mod life;
mod logging;
mod logs;
mod ls;
mod map;
mod nodes;
mod outcome;
mod parse;
mod report;
mod results;
mod retry;
mod run;
mod running;
mod schema;
mod send;
mod show;
mod spec_file;
mod spool;
mod streams;
mod style;
mod submit;
mod terminal;
mod undrain;
mod up;
mod wait;
mod watch;
mod watchdog;
mod worker;

use app::App;
use clap::{CommandFactory, Parser, Subcommand};
use config::{Config, Environment, Flag};
use failure::Failure;
use figment::value::Value;
use report::Report;
use std::{ffi::OsString, path::PathBuf};
use terminal::Color;

/// Every machine you own under one roof, with one door
///
/// A house is a set of machines that share one bus. `longhouse up` raises it on this machine,
/// `longhouse worker` lends another one to it, and `longhouse run -- COMMAND` runs a command on
/// whichever machine has room.
#[derive(Debug, Parser)]
#[command(
    name = "longhouse",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "Works are named by their id, the beginning of it, their name, or `@last`.\n\
                  Exit codes: of `run` and `wait` the job's own (128+n for a signal); 2 usage, \
                  120 no bus, 121 refused, 122 lost, 124 timed out, 130 cancelled before it started."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What may be said with every command.
#[derive(Debug, clap::Args)]
struct Global {
    /// The house's folder [default: longhouse in your data folder; LONGHOUSE_DIR]
    #[arg(long, global = true, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath, help_heading = "House")]
    dir: Option<PathBuf>,
    /// The bus's address, such as nats://127.0.0.1:4222 [default: as the folder says]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = "House")]
    url: Option<String>,
    /// The file with your identity [default: owner.creds of the folder]
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "House")]
    creds: Option<PathBuf>,
    /// Print what programs can read: the messages of the wire
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// When to use colours: auto, always or never
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    color: Color,
    /// Say more; twice: much more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Raise the house on this machine
    Up(up::Up),
    /// End what this folder runs on this machine
    Down(down::Down),
    /// Lend this machine to a house that is up elsewhere
    Worker(worker::Worker),

    /// Run a command on whichever machine has room, and wait for it
    Run(run::Run),
    /// Run a command once for each line of a list
    Map(map::Map),
    /// Submit a work that is described in a file
    Submit(submit::Submit),

    /// List works, newest first
    Ls(ls::Ls),
    /// Show how a work stands
    Show(show::Show),
    /// Wait until a work has ended
    Wait(wait::Wait),
    /// Cancel a work
    Cancel(cancel::Cancel),
    /// Try again what failed of a work
    Retry(retry::Retry),
    /// Show how the jobs of a work ended
    Results(results::Results),
    /// Show what jobs wrote
    Logs(logs::Logs),
    /// Say in a sentence why a work waits or failed, or how a node stands
    Explain(explain::Explain),

    /// List the machines of the house
    Nodes(nodes::Nodes),
    /// Let a node finish what it has and take nothing new
    Drain(drain::Drain),
    /// Let a drained node take jobs again
    Undrain(undrain::Undrain),

    /// Ask anything on the bus
    Call(call::Call),
    /// Watch the bus's traffic, in words
    Watch(watch::Watch),
    /// Show the messages that may be said
    Schema(schema::Schema),
    /// Print what other clients need to get in
    Env(env::Env),
    /// Show each setting and where it came from
    Config(configuration::Configuration),
    /// Check everything, and say how to mend what is broken
    Doctor(doctor::Doctor),
    /// Print the completion script of a shell
    Completion(completion::Completion),
    /// See it work: a house of its own audits the source of every crate of this build
    Demo(demo::Demo),

    /// The small process between a house and its bus's server
    #[command(name = bus::server::shim::NAME, hide = true)]
    BusShim(up::BusShim),
    /// The small process that owns a node's jobs
    #[command(hide = true)]
    Keeper(worker::Keeper),
}

impl Command {
    /// Commands that may not have a runtime, settings or logs of their own: they must be small.
    fn bare(self) -> Result<std::process::ExitCode, Box<Self>> {
        match self {
            Command::BusShim(shim) => Ok(shim.run()),
            Command::Keeper(keeper) => Ok(keeper.run()),
            other => Err(Box::new(other)),
        }
    }

    /// The name of the log of a long-lived command.
    fn log_name(&self) -> Option<String> {
        match self {
            Command::Up(up) => Some(up.log_name()),
            Command::Worker(worker) => Some(worker.log_name()),
            _ => None,
        }
    }

    /// Flags that are settings.
    fn flags(&self) -> Vec<Flag> {
        match self {
            Command::Up(up) => up.flags(),
            Command::Worker(worker) => worker.flags(),
            _ => Vec::new(),
        }
    }

    async fn run(self, app: &App) -> anyhow::Result<Report> {
        match self {
            Command::Up(it) => it.run(app).await,
            Command::Down(it) => it.run(app).await,
            Command::Worker(it) => it.run(app).await,
            Command::Run(it) => it.run(app).await,
            Command::Map(it) => it.run(app).await,
            Command::Submit(it) => it.run(app).await,
            Command::Ls(it) => it.run(app).await,
            Command::Show(it) => it.run(app).await,
            Command::Wait(it) => it.run(app).await,
            Command::Cancel(it) => it.run(app).await,
            Command::Retry(it) => it.run(app).await,
            Command::Results(it) => it.run(app).await,
            Command::Logs(it) => it.run(app).await,
            Command::Explain(it) => it.run(app).await,
            Command::Nodes(it) => it.run(app).await,
            Command::Drain(it) => it.run(app).await,
            Command::Undrain(it) => it.run(app).await,
            Command::Call(it) => it.run(app).await,
            Command::Watch(it) => it.run(app).await,
            Command::Schema(it) => it.run(),
            Command::Env(it) => it.run(app),
            Command::Config(it) => it.run(app),
            Command::Doctor(it) => it.run(app).await,
            Command::Completion(it) => it.run(),
            Command::Demo(it) => it.run(app).await,
            Command::BusShim(_) | Command::Keeper(_) => {
                unreachable!("run before there is a runtime")
            }
        }
    }
}

fn main() -> std::process::ExitCode {
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing has run before this line");
    completion::answer_shell();

    let cli = Cli::try_parse().unwrap_or_else(|error| not_understood(&error));
    cli.global.color.apply();
    let Cli { global, command } = cli;
    let command = match command.bare() {
        Ok(code) => return code,
        Err(command) => *command,
    };
    let code = match start(&global, command) {
        Ok(code) => code,
        Err(error) => {
            let failure = Failure::of(&error);
            match global.json {
                true => terminal::complain_json(&failure),
                false => terminal::complain(&failure),
            }
            failure.code
        }
    };
    // Not returned: a thread that waits for a slow reader or for standard input would be waited for.
    std::process::exit(code.into())
}

/// Ends with what clap says; for a program, as an error like every other.
fn not_understood(error: &clap::Error) -> ! {
    let mut ours = std::env::args_os().skip(1).take_while(|argument| argument != "--");
    if error.use_stderr() && ours.any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let mut failure = Failure::usage(message.trim_start_matches("error: ").trim());
        let tip = rest.lines().find_map(|line| line.trim().strip_prefix("tip: "));
        failure.hint = tip.map(str::to_owned);
        terminal::complain_json(&failure);
        std::process::exit(failure.code.into());
    }
    error.exit()
}

fn start(global: &Global, command: Command) -> anyhow::Result<u8> {
    let environment = Environment::take();
    let dir = config::folder(global.dir.clone(), &environment)?;
    let rust_log = environment.get("RUST_LOG").map(str::to_owned);
    let _log = match command.log_name() {
        Some(part) => Some(logging::to_file(&dir, &part, global.verbose, rust_log.as_deref())?),
        None => {
            logging::to_stderr(global.verbose, rust_log.as_deref());
            None
        }
    };
    let mut flags = command.flags();
    flags.extend(global.url.clone().map(|url| ("url", Value::from(url))));
    let creds = global.creds.clone().map(OsString::from);
    flags.extend(creds.map(|path| ("creds", Value::from(path.to_string_lossy().into_owned()))));
    let config = Config::read(&dir, &environment, &flags)?;
    let app = App { dir, config, environment, json: global.json, verbose: global.verbose };

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(command.run(&app))?;
    terminal::print(&report.render(app.json, terminal::stdout_is_terminal()))?;
    Ok(report.code)
}

/// The command line, for completion and for the test of it.
fn command_line() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command_line().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        for command in command_line().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
                let known = argument.get_help().is_some();
                assert!(known, "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn what_follows_two_dashes_is_the_command_with_its_own_options() {
        let cli = Cli::parse_from(["longhouse", "run", "--cpus", "2", "--", "ls", "-l", "--json"]);
        assert!(!cli.global.json);
        let Command::Run(run) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(run.argv, ["ls", "-l", "--json"]);
    }
}
