//! How a command fails: a sentence that names the thing, the next step, and a code for the shell.

use schemas::error::{Refusal, code};
use std::{borrow::Cow, fmt};

/// Longhouse's own exit codes; everything else is the job's.
pub(crate) mod exit {
    /// Something was wrong, and no better code fits.
    pub(crate) const FAILED: u8 = 1;
    /// The command line makes no sense.
    pub(crate) const USAGE: u8 = 2;
    /// There is no bus.
    pub(crate) const NO_BUS: u8 = 120;
    /// What was asked for was refused.
    pub(crate) const REFUSED: u8 = 121;
    /// The job was lost, or the house failed.
    pub(crate) const LOST: u8 = 122;
    /// The job ran out of time.
    pub(crate) const TIMED_OUT: u8 = 124;
    /// The job was cancelled before it started.
    pub(crate) const CANCELLED: u8 = 130;
    /// Who read our output has gone.
    pub(crate) const READER_GONE: u8 = 141;
}

/// A failure with everything a person or a shell needs to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the process ends with.
    pub(crate) code: u8,
    /// A stable word for programs: that of the refusal, where it was one.
    pub(crate) word: Cow<'static, str>,
    /// A lowercase fragment that names the thing.
    pub(crate) message: String,
    /// The next step.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, word: Cow::Borrowed(word(code)), message: message.into(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Any error, with the hint and the code of the part of it that knows best.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let mut out = Self::new(exit::FAILED, format!("{error:#}"));
        for cause in error.chain() {
            let known = if let Some(failure) = cause.downcast_ref::<Failure>() {
                failure.clone()
            } else if let Some(refusal) = cause.downcast_ref::<Refusal>() {
                of_refusal(refusal)
            } else if let Some(error) = cause.downcast_ref::<bus::Error>() {
                of_bus(error)
            } else {
                continue;
            };
            out.code = known.code;
            out.word = known.word;
            out.hint = known.hint;
            break;
        }
        out
    }
}

/// The word for a failure that no refusal named.
fn word(code: u8) -> &'static str {
    match code {
        exit::USAGE => "usage",
        exit::NO_BUS => "no_bus",
        exit::REFUSED => "refused",
        exit::LOST => "lost",
        exit::TIMED_OUT => "timed_out",
        exit::CANCELLED => "cancelled",
        exit::READER_GONE => "reader_gone",
        _ => "failed",
    }
}

/// Hints are written for who speaks on the bus; here the same is said for who types commands.
pub(crate) fn typed_hint(hint: Option<String>) -> Option<String> {
    let hint = hint?;
    if hint.starts_with("without a header the payload") {
        return None;
    }
    Some(hint.replace("`list` shows the works", "`longhouse ls` shows the works"))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

fn of_refusal(refusal: &Refusal) -> Failure {
    let mut out = Failure::new(exit::REFUSED, refusal.message.clone());
    out.word = refusal.code.to_string().into();
    out.hint = typed_hint(refusal.hint.clone());
    if &*refusal.code == code::INTERNAL {
        out.code = exit::LOST;
    }
    out
}

fn of_bus(error: &bus::Error) -> Failure {
    match error {
        bus::Error::Refused(refusal) => of_refusal(refusal),
        bus::Error::Down { .. } => Failure::new(exit::NO_BUS, error.to_string()).hint(
            "is the house up? `longhouse up` raises it, `longhouse doctor` says what is wrong",
        ),
        bus::Error::Denied { .. } => Failure::usage(error.to_string())
            .hint("give the credentials of this house with `--creds FILE` or `--dir FOLDER`"),
        bus::Error::Nobody { subject } => {
            Failure::new(exit::LOST, error.to_string()).hint(nobody_hint(subject))
        }
        bus::Error::Silence { .. } => Failure::new(exit::LOST, error.to_string())
            .hint("`longhouse doctor` says which part does not answer"),
        bus::Error::Address { .. } => {
            Failure::usage(error.to_string()).hint("give it with `--url ADDRESS`")
        }
        bus::Error::TooLarge { .. } => Failure::new(exit::REFUSED, error.to_string()),
        bus::Error::File { .. } => Failure::usage(error.to_string())
            .hint("give the credentials of this house with `--creds FILE` or `--dir FOLDER`"),
        _ => Failure::new(exit::LOST, error.to_string()),
    }
}

fn nobody_hint(subject: &str) -> &'static str {
    if subject.starts_with("lh.work.") {
        "no manager is up; `longhouse up` or `longhouse up --only manager` starts one"
    } else if subject.starts_with("lh.sched.") {
        "no scheduler is up; `longhouse up` or `longhouse up --only scheduler` starts one"
    } else {
        "`longhouse watch` shows who speaks on the bus"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_keeps_its_code_and_hint_however_often_it_was_passed_on() {
        let nobody = bus::Error::Nobody { subject: "lh.work.submit.owner".into() };
        let error = Err::<(), _>(nobody).context("could not submit the work").unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(
            failure.message,
            "could not submit the work: nobody answers on `lh.work.submit.owner`"
        );
        assert_eq!(failure.code, exit::LOST);
        assert!(failure.hint.unwrap().contains("longhouse up"));
    }

    #[test]
    fn a_refusal_ends_with_121_and_its_own_hint() {
        let refusal = Refusal::new(code::UNKNOWN_WORK, "no work `x`").hint("see `longhouse ls`");
        let failure = Failure::of(&bus::Error::Refused(refusal).into());
        assert_eq!(failure.code, exit::REFUSED);
        assert_eq!(failure.hint.as_deref(), Some("see `longhouse ls`"));
    }

    #[test]
    fn hints_for_the_bus_are_said_for_the_command_line() {
        let hint = |text: &str| typed_hint(Some(text.to_owned()));
        let ls = hint("`list` shows the works there are").unwrap();
        assert_eq!(ls, "`longhouse ls` shows the works there are");
        assert_eq!(hint("without a header the payload must be one JSON object"), None);
    }

    #[test]
    fn no_bus_is_120_and_anything_else_is_1() {
        let down = bus::Error::Down { url: "nats://127.0.0.1:1".into() };
        assert_eq!(Failure::of(&down.into()).code, exit::NO_BUS);
        assert_eq!(Failure::of(&anyhow::anyhow!("something")).code, exit::FAILED);
    }
}
