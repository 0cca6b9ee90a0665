//! The only place that writes to the terminal: bytes and texts to stdout, sentences to stderr.
//!
//! Nobody panics because a reader has gone: `longhouse ls | head -1` ends quietly.

use crate::failure::{Failure, exit};
use std::io::{self, IsTerminal, Write};

/// Whether colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    /// On terminals, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl Color {
    /// Makes it hold for the whole process.
    pub(crate) fn apply(self) {
        match self {
            Color::Auto => {}
            Color::Always => anstream::ColorChoice::Always.write_global(),
            Color::Never => anstream::ColorChoice::Never.write_global(),
        }
    }
}

/// Writes a text (with colours, where they are wanted) to stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Turns a failed write into the way we end.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => {
            Failure::new(exit::READER_GONE, "nobody reads any more").into()
        }
        _ => anyhow::Error::new(error).context("could not write to stdout"),
    })
}

/// One sentence to stderr, for people: `longhouse: …`.
pub(crate) fn say(sentence: &str) {
    // Stderr may be closed; there is nobody left to tell that.
    let _ = writeln!(anstream::stderr().lock(), "longhouse: {sentence}");
}

/// A line to stderr as it is.
pub(crate) fn note(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// A failure, with its next step.
pub(crate) fn complain(failure: &Failure) {
    use owo_colors::OwoColorize;
    if failure.code == exit::READER_GONE {
        return;
    }
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{} {}", "longhouse:".red().bold(), failure.message);
    if let Some(hint) = &failure.hint {
        let _ = writeln!(err, "{} {hint}", "hint:".cyan());
    }
}

/// A failure, for a program: the same shape as a refusal on the wire.
pub(crate) fn complain_json(failure: &Failure) {
    if failure.code == exit::READER_GONE {
        return;
    }
    let error = serde_json::json!({"error": {
        "code": failure.word, "message": failure.message, "hint": failure.hint,
    }});
    let _ = writeln!(anstream::stderr().lock(), "{error}");
}

/// How many columns stdout's terminal has; `None` where there is none, or one that does not say.
pub(crate) fn width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}
