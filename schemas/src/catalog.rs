//! Every message there is: where it is said, by whom to whom, what it means and what it looks like.
//!
//! This is the one declaration. JSON Schemas, `SUBJECTS.md` and the AsyncAPI document are made from
//! it ([`render`]), `longhouse schema` and the metadata of the services read it, and `longhouse
//! watch` finds the words for what passes by ([`of_subject`], [`decode`]).

mod example;
mod loose;
pub mod render;

#[cfg(any(test, feature = "transcode"))]
use crate::{codec, error::Refusal};
use crate::{
    codec::Encoding,
    error::ErrorBody,
    fact,
    job::{
        HeldAnswer, HeldRequest, JobsAnswer, JobsRequest, ReadAnswer, ReadRequest, Report,
        ReportAnswer, StopAnswer, StopRequest,
    },
    node::Beat,
    outcome::Summary,
    output::Frames,
    request::{
        Append, AppendedReply, Change, Close, Done, Explain, Explained, Follow, Followed, Get,
        List, NodeChange, Nodes, NodesReply, Outcomes, PoolChange, Results, RunReply, Submitted,
        Wait, Works,
    },
    token::is_token,
    work::{Submit, check::nearest},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{borrow::Cow, fmt};

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody asks and is answered.
    Request,
    /// Stored, and read by whoever cares, also later.
    Stream,
    /// Said once to whoever listens; may be missed.
    Event,
    /// Stored in the one order that counts.
    Journal,
}

impl Kind {
    /// The word, as it is said everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Request => "request",
            Kind::Stream => "stream",
            Kind::Event => "event",
            Kind::Journal => "journal",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who says a message, or to whom it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever uses the house.
    Client,
    /// A manager; any of them.
    Manager,
    /// The acting scheduler of the pool.
    Scheduler,
    /// A node.
    Node,
    /// Whoever listens.
    All,
}

impl Who {
    /// The word, as it is said everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Who::Client => "client",
            Who::Manager => "manager",
            Who::Scheduler => "scheduler",
            Who::Node => "node",
            Who::All => "all",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// As which bytes a message may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// JSON, or MessagePack where the header says so; the asker chooses.
    Either,
    /// Always JSON.
    Json,
    /// Always MessagePack with named fields.
    MsgPack,
}

impl Wire {
    /// The encodings that are read.
    pub fn encodings(self) -> &'static [Encoding] {
        match self {
            Wire::Either => &[Encoding::Json, Encoding::MsgPack],
            Wire::Json => &[Encoding::Json],
            Wire::MsgPack => &[Encoding::MsgPack],
        }
    }
}

/// Reads a message in one encoding and writes it in another. For tests only (the feature
/// `transcode`): every reader and writer of every message is compiled for it, which takes longer
/// than all the rest of this room.
#[cfg(any(test, feature = "transcode"))]
type Transcode = fn(Encoding, &[u8], Encoding) -> Result<Vec<u8>, Refusal>;

/// What one message looks like: its type, with everything that can be done without knowing it.
#[derive(Clone, Copy)]
pub struct Body {
    type_name: fn() -> Cow<'static, str>,
    subschema: fn(&mut SchemaGenerator) -> Schema,
    root: fn(SchemaGenerator) -> Schema,
    #[cfg(any(test, feature = "transcode"))]
    lenient: Transcode,
    #[cfg(any(test, feature = "transcode"))]
    strict: Transcode,
    /// Whether people write it, so that an unknown field is refused.
    pub is_strict: bool,
}

impl Body {
    /// What parts say: unknown fields are passed over.
    pub const fn said<T: JsonSchema + Serialize + DeserializeOwned>() -> Self {
        Self {
            type_name: T::schema_name,
            subschema: |generator| generator.subschema_for::<T>(),
            root: |generator| generator.into_root_schema_for::<T>(),
            #[cfg(any(test, feature = "transcode"))]
            lenient: |from, bytes, to| Ok(codec::encode(to, &codec::decode::<T>(from, bytes)?)),
            #[cfg(any(test, feature = "transcode"))]
            strict: |from, bytes, to| {
                Ok(codec::encode(to, &codec::decode_strict::<T>(from, bytes)?))
            },
            is_strict: false,
        }
    }

    /// What people write: unknown fields are refused.
    pub const fn written<T: JsonSchema + Serialize + DeserializeOwned>() -> Self {
        let mut body = Self::said::<T>();
        body.is_strict = true;
        body
    }

    /// The name of its type.
    pub fn type_name(&self) -> Cow<'static, str> {
        (self.type_name)()
    }

    /// Reads it as its receiver would, and writes it in an encoding.
    #[cfg(any(test, feature = "transcode"))]
    pub fn transcode(
        &self,
        from: Encoding,
        bytes: &[u8],
        to: Encoding,
    ) -> Result<Vec<u8>, Refusal> {
        if self.is_strict {
            self.transcode_strictly(from, bytes, to)
        } else {
            (self.lenient)(from, bytes, to)
        }
    }

    /// The same, with unknown fields refused whoever says it.
    #[cfg(any(test, feature = "transcode"))]
    pub fn transcode_strictly(
        &self,
        from: Encoding,
        bytes: &[u8],
        to: Encoding,
    ) -> Result<Vec<u8>, Refusal> {
        (self.strict)(from, bytes, to)
    }

    /// The same, with unknown fields passed over whoever says it.
    #[cfg(any(test, feature = "transcode"))]
    pub fn transcode_leniently(
        &self,
        from: Encoding,
        bytes: &[u8],
        to: Encoding,
    ) -> Result<Vec<u8>, Refusal> {
        (self.lenient)(from, bytes, to)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.type_name())
    }
}

/// How a request is answered. In the place of any answer a refusal may come ([`ErrorBody`]).
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Not at all: it is no request.
    None,
    /// At once.
    Now(Body),
    /// When there is something to say, or when `hold_s` is over.
    Held(Body),
    /// With many messages; an empty one is the last.
    Many(Body),
}

impl Answer {
    /// What it looks like.
    pub fn body(&self) -> Option<Body> {
        match self {
            Answer::None => None,
            Answer::Now(body) | Answer::Held(body) | Answer::Many(body) => Some(*body),
        }
    }
}

/// One message that may be said, with its answer.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name: the literal tokens of its subject, such as `work.submit`.
    pub name: &'static str,
    /// How it travels.
    pub kind: Kind,
    /// Where it is said; `<…>` stands for one token (see [`PLACEHOLDERS`]), `[.<caller>]` may be
    /// left out by the owner.
    pub subject: &'static str,
    /// Who says it.
    pub from: &'static [Who],
    /// To whom.
    pub to: Who,
    /// What it means, in one sentence.
    pub what: &'static str,
    /// What it looks like; `None`: it is empty.
    pub body: Option<Body>,
    /// How it is answered.
    pub answer: Answer,
    /// As which bytes.
    pub wire: Wire,
}

/// What stands in the place of `<…>` in a subject.
pub const PLACEHOLDERS: &[(&str, &str)] = &[
    ("caller", "who speaks; the owner may leave it out"),
    ("pool", "the set of nodes that one scheduler rules; by default `main`"),
    ("owner", "whose the work is"),
    ("work", "the work's id, a UUIDv7"),
    ("work|all", "the work's id, or `all` where each entry names its own"),
    ("node", "the node's name"),
    ("stream", "`stdout`, `stderr`, `metrics`, or any named stream"),
    ("session", "a random token of one held request"),
];

/// What is left out at the end of a subject by the owner.
const OPTIONAL_CALLER: &str = "[.<caller>]";

const fn entry(name: &'static str, kind: Kind, subject: &'static str) -> Entry {
    Entry {
        name,
        kind,
        subject,
        from: &[],
        to: Who::All,
        what: "",
        body: None,
        answer: Answer::None,
        wire: Wire::Either,
    }
}

/// A request that clients make: `Q` is written by people, the answer comes at once.
const fn request<Q, A>(
    name: &'static str,
    subject: &'static str,
    to: Who,
    what: &'static str,
) -> Entry
where
    Q: JsonSchema + Serialize + DeserializeOwned,
    A: JsonSchema + Serialize + DeserializeOwned,
{
    Entry {
        from: &[Who::Client],
        to,
        what,
        body: Some(Body::written::<Q>()),
        answer: Answer::Now(Body::said::<A>()),
        ..entry(name, Kind::Request, subject)
    }
}

/// A request between parts of the house.
const fn between<Q, A>(
    name: &'static str,
    subject: &'static str,
    from: &'static [Who],
    to: Who,
    what: &'static str,
) -> Entry
where
    Q: JsonSchema + Serialize + DeserializeOwned,
    A: JsonSchema + Serialize + DeserializeOwned,
{
    Entry { from, body: Some(Body::said::<Q>()), ..request::<Q, A>(name, subject, to, what) }
}

impl Entry {
    /// The answer may be held back.
    const fn held(mut self) -> Self {
        if let Answer::Now(body) = self.answer {
            self.answer = Answer::Held(body);
        }
        self
    }

    /// There are many answers.
    const fn many(mut self) -> Self {
        if let Answer::Now(body) = self.answer {
            self.answer = Answer::Many(body);
        }
        self
    }

    /// Who else asks.
    const fn from(mut self, from: &'static [Who]) -> Self {
        self.from = from;
        self
    }
}

/// A fact: JSON in the journal.
const fn fact<T: JsonSchema + Serialize + DeserializeOwned>(
    name: &'static str,
    subject: &'static str,
    from: &'static [Who],
    what: &'static str,
) -> Entry {
    Entry {
        from,
        what,
        body: Some(Body::said::<T>()),
        wire: Wire::Json,
        ..entry(name, Kind::Journal, subject)
    }
}

const MANAGER: &[Who] = &[Who::Manager];
const SCHEDULER: &[Who] = &[Who::Scheduler];
const NODE: &[Who] = &[Who::Node];
const ANYBODY: &[Who] = &[Who::Client, Who::Manager];

/// Every message there is, in the order in which a reader should meet them.
pub static CATALOG: &[Entry] = &[
    request::<Submit, Submitted>(
        "work.submit",
        "lh.work.submit[.<caller>]",
        Who::Manager,
        "Take on a work; answered with its id once it is stored.",
    ),
    request::<Submit, RunReply>(
        "work.run",
        "lh.work.run[.<caller>]",
        Who::Manager,
        "Take on a work and wait for its end; of a single job the outcome comes with it.",
    )
    .held(),
    request::<Append, AppendedReply>(
        "work.append",
        "lh.work.append[.<caller>]",
        Who::Manager,
        "Add tasks or items to an open work.",
    ),
    request::<Close, Summary>(
        "work.close",
        "lh.work.close[.<caller>]",
        Who::Manager,
        "Say that nothing more will be appended.",
    ),
    request::<Get, Summary>(
        "work.get",
        "lh.work.get[.<caller>]",
        Who::Manager,
        "How does a work stand?",
    ),
    request::<List, Works>(
        "work.list",
        "lh.work.list[.<caller>]",
        Who::Manager,
        "Which works are there? Newest first, in pages.",
    ),
    request::<Results, Outcomes>(
        "work.results",
        "lh.work.results[.<caller>]",
        Who::Manager,
        "How did its indices end? In pages.",
    ),
    request::<Change, Summary>(
        "work.cancel",
        "lh.work.cancel[.<caller>]",
        Who::Manager,
        "End a work: nothing of it is started any more, what runs is stopped.",
    ),
    request::<Change, Summary>(
        "work.retry",
        "lh.work.retry[.<caller>]",
        Who::Manager,
        "Try again what did not finish; begins a new round.",
    ),
    request::<Wait, Summary>(
        "work.wait",
        "lh.work.wait[.<caller>]",
        Who::Manager,
        "Wait for a work's end.",
    )
    .held(),
    request::<Follow, Followed>(
        "work.follow",
        "lh.work.follow[.<caller>]",
        Who::Manager,
        "Facts and output of a work as they come, from the start or behind a cursor.",
    )
    .many(),
    Entry {
        from: &[Who::Client],
        to: Who::Manager,
        what: "An empty message on the reply subject of a `follow`: its cursor has been read.",
        ..entry("ack", Kind::Event, "lh.ack.<session>.<caller>")
    },
    Entry {
        from: &[Who::Client],
        to: Who::Manager,
        what: "The same as `work.submit`, stored while no manager is up.",
        body: Some(Body::written::<Submit>()),
        ..entry("inbox", Kind::Stream, "lh.inbox.<caller>")
    },
    request::<Explain, Explained>(
        "sched.explain",
        "lh.sched.<pool>.explain[.<caller>]",
        Who::Scheduler,
        "Why does a work wait, run where it runs, or fail? Why does a node take nothing?",
    )
    .from(ANYBODY),
    request::<Nodes, NodesReply>(
        "sched.nodes",
        "lh.sched.<pool>.nodes[.<caller>]",
        Who::Scheduler,
        "Which nodes are there, what do they have, how do they stand?",
    )
    .from(ANYBODY),
    request::<NodeChange, Done>(
        "sched.drain",
        "lh.sched.<pool>.drain[.<caller>]",
        Who::Scheduler,
        "Give a node no new jobs; what it has it finishes.",
    )
    .from(ANYBODY),
    request::<NodeChange, Done>(
        "sched.undrain",
        "lh.sched.<pool>.undrain[.<caller>]",
        Who::Scheduler,
        "Give a node jobs again.",
    )
    .from(ANYBODY),
    request::<PoolChange, Done>(
        "sched.pause",
        "lh.sched.<pool>.pause[.<caller>]",
        Who::Scheduler,
        "Place nothing in the pool; what runs goes on.",
    )
    .from(ANYBODY),
    request::<PoolChange, Done>(
        "sched.resume",
        "lh.sched.<pool>.resume[.<caller>]",
        Who::Scheduler,
        "Place work in the pool again.",
    )
    .from(ANYBODY),
    fact::<fact::Accepted>(
        "fact.accepted",
        "lh.fact.<pool>.<owner>.<work>.accepted",
        MANAGER,
        "A work was accepted.",
    ),
    fact::<fact::Appended>(
        "fact.appended",
        "lh.fact.<pool>.<owner>.<work>.appended",
        MANAGER,
        "Tasks or items joined an open work.",
    ),
    fact::<fact::Closed>(
        "fact.closed",
        "lh.fact.<pool>.<owner>.<work>.closed",
        MANAGER,
        "An open work is complete.",
    ),
    fact::<fact::CancelAsked>(
        "fact.cancel-asked",
        "lh.fact.<pool>.<owner>.<work>.cancel-asked",
        MANAGER,
        "Somebody wants a work to end; what has no live attempt ends with this.",
    ),
    fact::<fact::RetryAsked>(
        "fact.retry-asked",
        "lh.fact.<pool>.<owner>.<work>.retry-asked",
        MANAGER,
        "Somebody wants what did not finish to be tried again; a round begins.",
    ),
    fact::<fact::Refused>(
        "fact.refused",
        "lh.fact.<pool>.<owner>.<work>.refused",
        MANAGER,
        "A message of the inbox was not accepted.",
    ),
    fact::<fact::Assigned>(
        "fact.assigned",
        "lh.fact.<pool>.<owner>.<work|all>.assigned",
        SCHEDULER,
        "Attempts were given to an instance of a node.",
    ),
    fact::<fact::Returned>(
        "fact.returned",
        "lh.fact.<pool>.<owner>.<work|all>.returned",
        SCHEDULER,
        "Attempts that were never started came back.",
    ),
    fact::<fact::Lost>(
        "fact.lost",
        "lh.fact.<pool>.<owner>.<work|all>.lost",
        SCHEDULER,
        "Attempts are given up: their node is silent, or says that it lost them.",
    ),
    fact::<fact::Ended>(
        "fact.ended",
        "lh.fact.<pool>.<owner>.<work|all>.ended",
        SCHEDULER,
        "Attempts ended, with their outcomes.",
    ),
    fact::<fact::Finished>(
        "fact.finished",
        "lh.fact.<pool>.<owner>.<work|all>.finished",
        SCHEDULER,
        "Works ended.",
    ),
    fact::<fact::Expired>(
        "fact.expired",
        "lh.fact.<pool>.<owner>.<work>.expired",
        SCHEDULER,
        "An open work was not closed in time, and fails.",
    ),
    fact::<fact::EpochFact>(
        "fact.epoch",
        "lh.fact.<pool>.epoch",
        SCHEDULER,
        "A scheduler has taken the pool; its later writes are fenced by this one.",
    ),
    fact::<fact::NodeFact>(
        "fact.drained",
        "lh.fact.<pool>.scheduler.<node>.drained",
        SCHEDULER,
        "A node takes no new jobs.",
    ),
    fact::<fact::NodeFact>(
        "fact.undrained",
        "lh.fact.<pool>.scheduler.<node>.undrained",
        SCHEDULER,
        "A node takes jobs again.",
    ),
    fact::<fact::PoolFact>(
        "fact.paused",
        "lh.fact.<pool>.scheduler.all.paused",
        SCHEDULER,
        "Nothing is placed in the pool.",
    ),
    fact::<fact::PoolFact>(
        "fact.resumed",
        "lh.fact.<pool>.scheduler.all.resumed",
        SCHEDULER,
        "The pool goes on.",
    ),
    between::<JobsRequest, JobsAnswer>(
        "node.jobs",
        "lh.node.<node>.jobs",
        SCHEDULER,
        Who::Node,
        "Start these jobs; the answer says which are not taken.",
    ),
    between::<StopRequest, StopAnswer>(
        "node.stop",
        "lh.node.<node>.stop",
        SCHEDULER,
        Who::Node,
        "End these jobs.",
    ),
    between::<HeldRequest, HeldAnswer>(
        "node.held",
        "lh.node.<node>.held",
        SCHEDULER,
        Who::Node,
        "What do you hold? Asked first of every instance.",
    ),
    between::<ReadRequest, ReadAnswer>(
        "node.read",
        "lh.node.<node>.read",
        MANAGER,
        Who::Node,
        "How far the reader who paces a job has come.",
    ),
    between::<Report, ReportAnswer>(
        "report",
        "lh.report.<pool>.<node>",
        NODE,
        Who::Scheduler,
        "What became of jobs; answered when it is stored, said again until then.",
    ),
    Entry {
        from: NODE,
        to: Who::Scheduler,
        what: "Every 2 s: alive, what it has, what it holds.",
        body: Some(Body::said::<Beat>()),
        wire: Wire::Json,
        ..entry("beat", Kind::Event, "lh.beat.<node>")
    },
    Entry {
        from: NODE,
        what: "What jobs write: frames of many jobs of one work and stream.",
        body: Some(Body::said::<Frames>()),
        wire: Wire::MsgPack,
        ..entry("out", Kind::Stream, "lh.out.<owner>.<work>.<stream>.<node>")
    },
    Entry {
        from: NODE,
        what: "The same frames beyond what is stored; may be missed.",
        body: Some(Body::said::<Frames>()),
        wire: Wire::MsgPack,
        ..entry("live", Kind::Event, "lh.live.<owner>.<work>.<stream>.<node>")
    },
];

/// The body of every refusal, in the place of any answer.
pub const REFUSAL: Body = Body::said::<ErrorBody>();

/// Where messages are kept.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    /// Its name; `<…>` stands for one token.
    pub name: &'static str,
    /// Whether it is a bucket of keys; else a stream of messages.
    pub is_bucket: bool,
    /// Which subjects it keeps, or how its keys are made.
    pub keeps: &'static str,
    /// What it holds and for how long, in one sentence.
    pub what: &'static str,
    /// What a value looks like, where it is not a message of the catalogue.
    pub value: Option<Body>,
}

/// Every store of the house that exists so far.
pub static STORES: &[Store] = &[
    Store {
        name: "lh-fact-<pool>",
        is_bucket: false,
        keeps: "lh.fact.<pool>.>",
        what: "The journal of a pool: every fact, in the one order that counts.",
        value: None,
    },
    Store {
        name: "lh-inbox",
        is_bucket: false,
        keeps: "lh.inbox.>",
        what: "Submits that wait for a manager; each goes when it is accepted or refused.",
        value: None,
    },
    Store {
        name: "lh-out",
        is_bucket: false,
        keeps: "lh.out.>",
        what: "What jobs wrote, for seven days or until its share is full.",
        value: None,
    },
    Store {
        name: "lh-lease",
        is_bucket: true,
        keeps: "one key a pool",
        what: "Who is the acting scheduler of a pool; a key expires with its lease.",
        value: None,
    },
    Store {
        name: "lh-work",
        is_bucket: true,
        keeps: "<owner>.<work>",
        what: "The summary of each work, for the curious; written at most once a second.",
        value: Some(Body::said::<Summary>()),
    },
    Store {
        name: "lh-node",
        is_bucket: true,
        keeps: "<node>",
        what: "What is to be remembered of a node beyond its beats.",
        value: None,
    },
];

impl Entry {
    /// Whether a subject is one of this entry's.
    pub fn matches(&self, subject: &str) -> bool {
        self.parts(subject).is_some()
    }

    /// What stands in the placeholders of a subject; `None` when it is not one of this entry's.
    pub fn parts<'a>(&self, subject: &'a str) -> Option<Vec<(&'static str, &'a str)>> {
        let (base, optional) = match self.subject.strip_suffix(OPTIONAL_CALLER) {
            Some(base) => (base, true),
            None => (self.subject, false),
        };
        let mut parts = Vec::new();
        let mut said = subject.split('.');
        for wanted in base.split('.') {
            let token = said.next()?;
            match wanted.strip_prefix('<').and_then(|name| name.strip_suffix('>')) {
                Some(name) if is_token(token) => parts.push((name, token)),
                None if wanted == token => {}
                _ => return None,
            }
        }
        if let Some(caller) = said.next() {
            if !optional || !is_token(caller) {
                return None;
            }
            parts.push(("caller", caller));
        }
        said.next().is_none().then_some(parts)
    }

    /// The JSON Schema of the message; `None` when it is empty.
    pub fn schema(&self) -> Option<Value> {
        Some(render::message_schema(self.body?, self.name, self.what))
    }

    /// The JSON Schema of its answer; `None` when it is no request.
    pub fn answer_schema(&self) -> Option<Value> {
        let name = format!("{}.reply", self.name);
        let what = format!("The answer to `{}`.", self.name);
        Some(render::message_schema(self.answer.body()?, &name, &what))
    }

    /// What the service that answers it says of it: both schemas, as text.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let schemas =
            [("request_schema", self.schema()), ("response_schema", self.answer_schema())];
        schemas
            .into_iter()
            .filter_map(|(key, schema)| Some((key.to_owned(), schema?.to_string())))
            .collect()
    }

    /// A message as somebody might say it, as JSON; `None` when it is empty.
    pub fn example(&self) -> Option<Value> {
        self.body?;
        example::of(self.name)
    }

    /// Its answer as somebody might give it, as JSON; `None` when it is no request.
    pub fn answer_example(&self) -> Option<Value> {
        self.answer.body()?;
        example::of(&format!("{}.reply", self.name))
    }

    /// `client → manager`
    pub fn direction(&self) -> String {
        let from: Vec<_> = self.from.iter().map(|who| who.as_str()).collect();
        format!("{} → {}", from.join(", "), self.to)
    }
}

/// The entry of a name, such as `work.submit`.
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.name == name)
}

/// The entry to which a subject belongs.
pub fn of_subject(subject: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.matches(subject))
}

/// The entry of a verb of `lh.work.…`.
pub fn work(verb: &str) -> Option<&'static Entry> {
    by_verb("work.", verb)
}

/// The entry of a verb of `lh.sched.<pool>.…`.
pub fn sched(verb: &str) -> Option<&'static Entry> {
    by_verb("sched.", verb)
}

/// The entry of a verb of `lh.node.<node>.…`.
pub fn node(verb: &str) -> Option<&'static Entry> {
    by_verb("node.", verb)
}

fn by_verb(room: &str, verb: &str) -> Option<&'static Entry> {
    CATALOG.iter().find(|entry| entry.name.strip_prefix(room) == Some(verb))
}

/// The names under which [`schema`] knows something, in the catalogue's order.
pub fn schema_names() -> Vec<String> {
    let mut names = Vec::new();
    for entry in CATALOG {
        names.extend(entry.body.map(|_| entry.name.to_owned()));
        names.extend(entry.answer.body().map(|_| format!("{}.reply", entry.name)));
    }
    names.push("error".to_owned());
    names
}

/// The JSON Schema of a message, for people: by its name (`work.submit`, `work.submit.reply`,
/// `error`), by the name of its type (`Submit`), or by its subject (`lh.work.submit`).
pub fn schema(name: &str) -> Option<Value> {
    let (entry, is_answer) = match lookup(name)? {
        Found::Refusal => {
            let what = "The body of every refusal.";
            return Some(render::message_schema(REFUSAL, "error", what));
        }
        Found::Message(entry) => (entry, false),
        Found::Answer(entry) => (entry, true),
    };
    if is_answer { entry.answer_schema() } else { entry.schema() }
}

/// A message as somebody might say it, by the same names as [`schema`].
pub fn example(name: &str) -> Option<Value> {
    match lookup(name)? {
        Found::Refusal => example::of("error"),
        Found::Message(entry) => entry.example(),
        Found::Answer(entry) => entry.answer_example(),
    }
}

enum Found {
    Message(&'static Entry),
    Answer(&'static Entry),
    Refusal,
}

fn lookup(name: &str) -> Option<Found> {
    if name == "error" || name == REFUSAL.type_name() {
        return Some(Found::Refusal);
    }
    let named = |name| find(name).or_else(|| of_subject(name));
    if let Some(entry) = name.strip_suffix(".reply").and_then(named) {
        return Some(Found::Answer(entry));
    }
    if let Some(entry) = named(name) {
        return Some(Found::Message(entry));
    }
    let is_type = |body: Option<Body>| body.is_some_and(|body| body.type_name() == name);
    CATALOG.iter().find_map(|entry| match entry {
        _ if is_type(entry.body) => Some(Found::Message(entry)),
        _ if is_type(entry.answer.body()) => Some(Found::Answer(entry)),
        _ => None,
    })
}

/// The nearest name that [`schema`] knows, for who mistyped one.
pub fn nearest_schema_name(name: &str) -> Option<String> {
    let names = schema_names();
    nearest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// Shows any message as JSON, whatever it is: nothing of it is left out, bytes are text where they
/// are UTF-8 and else `{"base64": "…"}`, an empty message is `null`. What cannot be read is shown
/// as its bytes. Frames are read as MessagePack even where their header is missing.
pub fn decode(subject: &str, encoding: Encoding, bytes: &[u8]) -> Value {
    let encoding = match of_subject(subject).map(|entry| entry.wire) {
        Some(Wire::Json) => Encoding::Json,
        Some(Wire::MsgPack) => Encoding::MsgPack,
        Some(Wire::Either) | None => encoding,
    };
    loose::show(encoding, bytes)
}

/// Whether a message is what the catalogue says of its subject; a subject that is not in the
/// catalogue may hold anything.
#[cfg(any(test, feature = "transcode"))]
pub fn check(subject: &str, encoding: Encoding, bytes: &[u8]) -> Result<(), Refusal> {
    match of_subject(subject).and_then(|entry| entry.body) {
        Some(body) => body.transcode(encoding, bytes, encoding).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fact::Fact,
        id::WorkId,
        subject::{self, SCHED_VERBS, WORK_VERBS},
        token::{CallerName, NodeName, OwnerName, PoolName, StreamName},
    };
    use std::collections::BTreeSet;

    #[test]
    fn every_verb_and_every_fact_is_declared_and_nothing_else() {
        let declared = |room: &str| -> BTreeSet<&str> {
            CATALOG.iter().filter_map(|entry| entry.name.strip_prefix(room)).collect()
        };
        assert_eq!(declared("work."), WORK_VERBS.iter().copied().collect());
        assert_eq!(declared("sched."), SCHED_VERBS.iter().copied().collect());
        assert_eq!(declared("fact."), Fact::KINDS.iter().copied().collect());
    }

    #[test]
    fn names_are_given_once_and_say_the_literal_tokens_of_the_subject() {
        let mut seen = BTreeSet::new();
        for entry in CATALOG {
            assert!(seen.insert(entry.name), "{} is there twice", entry.name);
            let plain = entry.subject.strip_suffix(OPTIONAL_CALLER).unwrap_or(entry.subject);
            let tokens: Vec<&str> = plain.split('.').collect();
            assert_eq!(tokens[0], "lh", "{}", entry.subject);
            let last = entry.name.split('.').next_back().unwrap();
            assert!(tokens.contains(&last), "{} does not lie at {}", entry.name, entry.subject);
            assert_eq!(Some(tokens[1]), entry.name.split('.').next(), "{}", entry.subject);
            assert!(!entry.from.is_empty() && entry.what.ends_with(['.', '?']), "{}", entry.name);
        }
    }

    #[test]
    fn every_placeholder_is_explained() {
        let known: BTreeSet<&str> = PLACEHOLDERS.iter().map(|(name, _)| *name).collect();
        let mut used = BTreeSet::new();
        for entry in CATALOG {
            used.extend(entry.subject.split('<').skip(1).map(|t| t.split('>').next().unwrap()));
        }
        assert_eq!(used, known);
    }

    #[test]
    fn no_subject_belongs_to_two_entries() {
        for (entry, placeholder) in CATALOG.iter().flat_map(|e| ["x", "all"].map(|p| (e, p))) {
            let full = entry.subject.replace(['[', ']'], "");
            let subject: Vec<&str> = full
                .split('.')
                .map(|token| if token.starts_with('<') { placeholder } else { token })
                .collect();
            let subject = subject.join(".");
            let owners: Vec<_> =
                CATALOG.iter().filter(|e| e.matches(&subject)).map(|e| e.name).collect();
            assert_eq!(owners, [entry.name], "{subject}");
        }
    }

    /// What [`subject`] builds is what the catalogue declares.
    #[test]
    fn the_subjects_that_are_built_are_the_ones_that_are_declared() {
        let caller = CallerName::owner();
        let owner = OwnerName::owner();
        let pool = PoolName::main();
        let m4 = NodeName::new("m4").unwrap();
        let work: WorkId = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f".parse().unwrap();
        let stream = StreamName::stdout();
        let mut said = vec![
            (subject::inbox(&caller), "inbox".to_owned()),
            (subject::report(&pool, &m4), "report".to_owned()),
            (subject::beat(&m4), "beat".to_owned()),
            (subject::out(&owner, work, &stream, &m4), "out".to_owned()),
            (subject::live(&owner, work, &stream, &m4), "live".to_owned()),
            (subject::ack("s1", &caller), "ack".to_owned()),
            (subject::epoch(&pool), "fact.epoch".to_owned()),
            (subject::fact(&pool, &owner, None, "ended"), "fact.ended".to_owned()),
            (subject::fact(&pool, &owner, Some(work), "accepted"), "fact.accepted".to_owned()),
            (subject::pool_fact(&pool, Some(&m4), "drained"), "fact.drained".to_owned()),
            (subject::pool_fact(&pool, None, "paused"), "fact.paused".to_owned()),
        ];
        for verb in WORK_VERBS {
            said.push((subject::work(verb, &caller), format!("work.{verb}")));
            said.push((format!("lh.work.{verb}"), format!("work.{verb}")));
        }
        for verb in SCHED_VERBS {
            said.push((subject::sched(&pool, verb, &caller), format!("sched.{verb}")));
        }
        for verb in ["jobs", "stop", "held", "read"] {
            said.push((subject::node(&m4, verb), format!("node.{verb}")));
        }
        for (subject, name) in said {
            assert_eq!(of_subject(&subject).map(|entry| entry.name), Some(&*name), "{subject}");
        }
        for nothing in ["", "lh", "lh.work", "lh.work.submit.a.b", "lh.work.submit.*", "lh.beat.>"]
        {
            assert!(of_subject(nothing).is_none(), "{nothing}");
        }
    }

    #[test]
    fn every_example_is_read_strictly_and_comes_back_the_same_in_both_encodings() {
        let mut examples = vec![("error".to_owned(), REFUSAL, example::of("error"))];
        for entry in CATALOG {
            if let Some(body) = entry.body {
                examples.push((entry.name.to_owned(), body, entry.example()));
            }
            if let Some(body) = entry.answer.body() {
                let name = format!("{}.reply", entry.name);
                examples.push((name, body, entry.answer_example()));
            }
        }
        for (name, body, example) in examples {
            let example = example.unwrap_or_else(|| panic!("`{name}` has no example"));
            let text = serde_json::to_vec(&example).unwrap();
            let again = |from, bytes: &[u8], to| {
                body.transcode_strictly(from, bytes, to)
                    .unwrap_or_else(|refusal| panic!("the example of `{name}`: {refusal:?}"))
            };
            let json = again(Encoding::Json, &text, Encoding::Json);
            let value: Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(value, example, "the example of `{name}` is not in its one form");
            let pack = again(Encoding::Json, &text, Encoding::MsgPack);
            assert_eq!(again(Encoding::MsgPack, &pack, Encoding::Json), json, "{name}");
            assert_eq!(loose::show(Encoding::MsgPack, &pack), example, "{name}");
        }
    }

    #[test]
    fn any_message_is_shown_as_json() {
        let show = |encoding, bytes: &[u8]| decode("lh.topic.x", encoding, bytes);
        assert_eq!(show(Encoding::Json, b""), Value::Null);
        assert_eq!(show(Encoding::Json, b"{\"a\":1}"), serde_json::json!({"a": 1}));
        assert_eq!(show(Encoding::Json, b"hello"), serde_json::json!("hello"));
        assert_eq!(show(Encoding::Json, b"\xff"), serde_json::json!({"base64": "/w=="}));
        // A map with a number for a key, a `bin`, an extension type and trailing bytes.
        assert_eq!(
            show(Encoding::MsgPack, b"\x82\x01\xc4\x01\xff\xa1b\xd4\x05\x07"),
            serde_json::json!({"1": {"base64": "/w=="}, "b": {"ext": 5, "bytes": "\u{7}"}})
        );
        // A map for a key is shown as its bytes: as text it would grow with each level.
        let deep = [vec![0x81; 60], vec![0xc0; 61]].concat();
        assert!(show(Encoding::MsgPack, &deep)["base64"].is_string());
        assert_eq!(show(Encoding::MsgPack, b"\x01\x02"), serde_json::json!("\u{1}\u{2}"));
        let frames = b"\x81\xa6frames\x90";
        let out = "lh.out.owner.0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f.stdout.m4";
        assert_eq!(decode(out, Encoding::Json, frames), serde_json::json!({"frames": []}));
        assert!(check(out, Encoding::MsgPack, frames).is_ok());
        assert!(check("lh.work.get", Encoding::Json, b"{\"work\":\"a\",\"x\":1}").is_err());
        assert!(check("lh.svc.mail.send", Encoding::Json, b"garbage").is_ok());
    }

    #[test]
    fn a_schema_is_found_by_name_by_type_and_by_subject() {
        let submit = find("work.submit").unwrap().schema();
        assert!(submit.is_some());
        for name in ["work.submit", "lh.work.submit", "lh.work.submit.anna", "Submit"] {
            assert_eq!(schema(name), submit, "{name}");
        }
        assert_eq!(schema("work.get.reply"), find("work.get").unwrap().answer_schema());
        for name in schema_names() {
            assert!(schema(&name).is_some() && example(&name).is_some(), "{name}");
        }
        assert_eq!(example("work.get.reply"), find("work.get").unwrap().answer_example());
        assert!(schema("ack").is_none() && schema("no.such").is_none());
        assert_eq!(nearest_schema_name("work.sumbit").as_deref(), Some("work.submit"));
    }

    #[test]
    fn what_people_write_admits_no_other_fields_and_what_parts_say_does() {
        let submit = find("work.submit").unwrap().schema().unwrap();
        assert_eq!(submit["additionalProperties"], false);
        assert_eq!(submit["$defs"]["Task"]["additionalProperties"], false);
        assert_eq!(schema("sched.nodes").unwrap()["additionalProperties"], false);
        let env = &submit["$defs"]["Process"]["properties"]["env"];
        assert_eq!(env["additionalProperties"]["type"], "string", "{env}");
        let accepted = find("fact.accepted").unwrap().schema().unwrap();
        assert!(accepted.get("additionalProperties").is_none());
        assert!(accepted["$defs"]["Task"].get("additionalProperties").is_none());
    }
}
