//! What can go wrong on the bus, in the house's words. The client library's own errors repeat
//! their cause in their text, so they are translated here and not chained.

use schemas::error::Refusal;

/// A request or message that did not get through.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error("nobody answers on `{subject}`")]
    Nobody {
        /// Where it was asked.
        subject: String,
    },
    /// Somebody listens, but no answer came in time.
    #[error("no answer on `{subject}` within {within_s} s")]
    Silence {
        /// Where it was asked.
        subject: String,
        /// How long was waited.
        within_s: f64,
    },
    /// It was answered with a refusal.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer is not what was expected.
    #[error("the answer on `{subject}` cannot be read: {why}")]
    Malformed {
        /// Where it was asked.
        subject: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no connection now.
    #[error("not connected to the bus at {url}")]
    Down {
        /// The bus's address.
        url: String,
    },
    /// The bus refused the connection's credentials.
    #[error("the bus at {url} does not accept these credentials")]
    Denied {
        /// The bus's address.
        url: String,
    },
    /// The message is larger than the bus takes.
    #[error("{bytes} bytes are more than one message may hold ({limit})")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// There is no such stream.
    #[error("the bus has no stream `{stream}`")]
    NoStream {
        /// Which.
        stream: String,
    },
    /// What was given as the bus's address is none.
    #[error("`{url}` is no address such as nats://127.0.0.1:4222")]
    Address {
        /// What was given.
        url: String,
    },
    /// A file that is needed to connect.
    #[error("{what}: {why}")]
    File {
        /// Which file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Anything else the client library says.
    #[error("{doing}: {why}")]
    Other {
        /// What was being done.
        doing: String,
        /// What it said.
        why: String,
    },
}

impl Error {
    /// Anything else, with what was being done.
    pub(crate) fn other(doing: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Error::Other { doing: doing.into(), why: why.to_string() }
    }
}

/// A write into a stream that was not, or may not have been, stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The expectation does not hold: somebody wrote in between (or, for a fence, has taken over).
    #[error("something else was stored there in between")]
    Conflict,
    /// The stream, the store or the disk is full.
    #[error("the bus has no room for it: {0}")]
    Full(String),
    /// It is larger than one message may be.
    #[error("it is larger than one message may be")]
    TooLarge,
    /// No stream takes this subject: the house's streams are not there yet.
    #[error("no stream of the bus takes it")]
    NoStream,
    /// No answer: it may or may not have been stored.
    #[error("the bus did not answer: {0}")]
    Unanswered(String),
}
