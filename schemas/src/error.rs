//! Refusals: a stable code for programs, a sentence for people, the next step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt};

/// The body of every refusal: `{"error": {"code": "…", "message": "…", "hint": "…"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// What was refused, and why.
    pub error: Refusal,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// Stable, for programs: one of the constants of [`code`].
    pub code: Cow<'static, str>,
    /// One sentence for people; names the field or the thing.
    pub message: String,
    /// What to do next, when there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The path of the field that is wrong, such as `tasks[0].run.process.argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// Longest message and hint, in characters. What was wrong may be a megabyte long, and the answer
/// must still fit into one message.
const LONGEST_MESSAGE: usize = 1000;
/// Longest path of a field, in characters.
const LONGEST_FIELD: usize = 300;

fn shortened(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Refusal {
    /// A refusal with a code of [`code`] and a sentence.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        let message = shortened(message.into(), LONGEST_MESSAGE);
        Self { code: code.into(), message, hint: None, field: None }
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shortened(hint.into(), LONGEST_MESSAGE));
        self
    }

    /// Adds the path of the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(shortened(field.into(), LONGEST_FIELD));
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for ErrorBody {
    fn from(error: Refusal) -> Self {
        ErrorBody { error }
    }
}

/// The codes. They are never renamed; new ones may come.
pub mod code {
    macro_rules! codes {
        ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
            $($(#[$doc])* pub const $name: &str = $text;)*

            /// Every code with its number (for `Nats-Service-Error-Code`; the classes are HTTP's).
            pub const ALL: &[(&str, u16)] = &[$(($text, $status)),*];
        };
    }

    codes! {
        /// Not JSON, not MessagePack, wrong types: the bytes could not be read as the message.
        MALFORMED = "malformed", 400;
        /// A field that the message does not have.
        UNKNOWN_FIELD = "unknown_field", 400;
        /// A field has a value that is not allowed.
        INVALID = "invalid", 400;
        /// A number is larger than the limit.
        TOO_LARGE = "too_large", 413;
        /// What is asked for is not built yet, or not on this system.
        UNSUPPORTED = "unsupported", 501;
        /// The id belongs to another work.
        ID_TAKEN = "id_taken", 409;
        /// No such work.
        UNKNOWN_WORK = "unknown_work", 404;
        /// Several works fit the name.
        AMBIGUOUS_WORK = "ambiguous_work", 409;
        /// No such task in this work.
        UNKNOWN_TASK = "unknown_task", 404;
        /// No such node.
        UNKNOWN_NODE = "unknown_node", 404;
        /// No such request.
        UNKNOWN_VERB = "unknown_verb", 404;
        /// No node of the pool could ever run it.
        UNSATISFIABLE = "unsatisfiable", 422;
        /// A part of an open work was left out.
        PART_MISSING = "part_missing", 409;
        /// The part is known with another content.
        PART_TAKEN = "part_taken", 409;
        /// The work is not open, or not any more.
        NOT_OPEN = "not_open", 409;
        /// The work has ended.
        ENDED = "ended", 409;
        /// The request names a round that is over.
        WRONG_ROUND = "wrong_round", 409;
        /// Nothing in the work has failed.
        NOTHING_FAILED = "nothing_failed", 409;
        /// The id is older than what the journal remembers.
        TOO_OLD = "too_old", 410;
        /// The caller may not do that.
        FORBIDDEN = "forbidden", 403;
        /// The bus could not store it: full.
        DISK_FULL = "disk_full", 507;
        /// The bus did not store it in time.
        NOT_STORED = "not_stored", 503;
        /// Too much at once; try later.
        BUSY = "busy", 429;
        /// It is stopping, or has just started.
        NOT_READY = "not_ready", 503;
        /// The acting scheduler of this pool is another.
        NOT_ACTING = "not_acting", 503;
        /// To a node: a request with a pair not above the highest seen.
        STALE_REQUEST = "stale_request", 409;
        /// To a node: it is meant for another instance.
        NOT_ME = "not_me", 409;
        /// The cursor is none that was given out.
        BAD_CURSOR = "bad_cursor", 400;
        /// A bug of ours.
        INTERNAL = "internal", 500;
    }

    /// The number that belongs to a code; 500 for one that is not known here.
    pub fn status(code: &str) -> u16 {
        ALL.iter().find(|(name, _)| *name == code).map_or(500, |(_, status)| *status)
    }
}
