//! What nobody should say: each is answered with a stable code and a sentence that names the field,
//! nothing is changed by it, and the house goes on.

use crate::house::{House, patiently};
use async_nats::{Client, HeaderMap};
use schemas::{codec::MSGPACK, error::code};
use serde_json::{Value, json};

/// Something that is refused, and how.
struct Case {
    subject: &'static str,
    body: Vec<u8>,
    packed: bool,
    code: &'static str,
    field: Option<String>,
    /// Must stand in the message or the hint.
    said: &'static str,
}

impl Case {
    fn of(subject: &'static str, body: impl Into<Vec<u8>>, code: &'static str) -> Self {
        Self { subject, body: body.into(), packed: false, code, field: None, said: "" }
    }

    fn json(subject: &'static str, body: &Value, code: &'static str) -> Self {
        Self::of(subject, body.to_string(), code)
    }

    fn pack(subject: &'static str, body: &Value, code: &'static str) -> Self {
        let body = rmp_serde::to_vec_named(body).unwrap();
        Self { packed: true, ..Self::of(subject, body, code) }
    }

    fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    fn field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    fn says(self, said: &'static str) -> Self {
        Self { said, ..self }
    }

    /// Asks, and compares the answer with what was expected; says what is wrong.
    async fn check(&self, client: &Client) -> Result<(), String> {
        let shown: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
        let case = format!("{} {shown}", self.subject);
        let mut headers = HeaderMap::new();
        if self.packed {
            headers.insert("Content-Type", MSGPACK);
        }
        let request = client.request_with_headers(self.subject, headers, self.body.clone().into());
        let answer = patiently(&case, request).await.map_err(|error| format!("{case}: {error}"))?;
        let body: Value = match self.packed {
            true => rmp_serde::from_slice(&answer.payload).map_err(|error| error.to_string()),
            false => serde_json::from_slice(&answer.payload).map_err(|error| error.to_string()),
        }
        .map_err(|error| format!("{case}: {error}: {:?}", answer.payload))?;
        let error = &body["error"];
        let headers = answer.headers.unwrap_or_default();
        let number = headers.get("Nats-Service-Error-Code").map(ToString::to_string);
        let said = format!("{} {}", error["message"], error["hint"]);
        let wrong = if error["code"] != self.code {
            format!("the code is not `{}`", self.code)
        } else if self.field.as_deref().is_some_and(|field| error["field"] != field) {
            format!("the field is not {:?}", self.field)
        } else if !said.contains(self.said) {
            format!("it does not say {:?}", self.said)
        } else if number != Some(code::status(self.code).to_string()) {
            format!("the number in the headers is {number:?}")
        } else if headers.get("Nats-Service-Error").is_none() {
            "there is no error header".to_owned()
        } else if answer.payload.len() > 8192 {
            format!("the answer has {} bytes", answer.payload.len())
        } else {
            return Ok(());
        };
        Err(format!("{case}: {wrong}: {body}"))
    }
}

async fn check_all(house: &House, cases: Vec<Case>) {
    let client = house.nats().await;
    let before = house.ask("lh.work.list", r#"{"limit":1000}"#).await;
    let nodes = nodes(house).await;
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(how) = case.check(&client).await {
            wrong.push(how);
        }
    }
    let after = house.ask("lh.work.list", r#"{"limit":1000}"#).await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(before, after, "something was changed");
    assert_eq!(nodes, self::nodes(house).await, "something was changed");
    works(house).await;
    quiet(house);
}

/// Which nodes there are, and which are drained.
async fn nodes(house: &House) -> Vec<(Value, Value)> {
    let answer = house.ask("lh.sched.main.nodes", "{}").await;
    let nodes = answer["nodes"].as_array().unwrap_or_else(|| panic!("{answer}"));
    nodes.iter().map(|node| (node["node"].clone(), node["drained"].clone())).collect()
}

/// The house still runs what it is given.
async fn works(house: &House) {
    let answer = house.ask("lh.work.run", r#"{"argv":["echo","still here"]}"#).await;
    assert_eq!(answer["state"], "finished", "{answer}");
    assert_eq!(answer["stdout"], "still here\n", "{answer}");
}

/// Everything that was logged, by every part.
fn logs(house: &House) -> String {
    let mut text = String::new();
    let mut folders = vec![house.dir.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.to_string_lossy().contains(".log") {
                text.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()));
            }
        }
    }
    assert!(!text.is_empty(), "there are no logs");
    text
}

/// No part has panicked.
fn quiet(house: &House) {
    let logs = logs(house);
    let panics: Vec<&str> = logs.lines().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:#?}");
}

const SUBMIT: &str = "lh.work.submit";

fn task(name: &str, needs: &[&str]) -> Value {
    json!({"name": name, "needs": needs, "run": {"echo": ""}})
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let house = House::up(&[("home", "cpus=2")]).await;
    works(&house).await;
    let deep = "[".repeat(900_000);
    let closed = format!("{}{}", "[".repeat(450_000), "]".repeat(450_000));
    let in_field = |field: &str, rest: &str| format!(r#"{{"argv":["a"],"{field}":{rest}}}"#);
    let mut cases = vec![
        Case::of(SUBMIT, r#"{"argv":["a"]"#, code::MALFORMED).says("one JSON object"),
        Case::of(SUBMIT, "uname -a", code::MALFORMED).says("one JSON object"),
        Case::of(SUBMIT, r#"{"argv":["a"]} and more"#, code::MALFORMED),
        Case::of(SUBMIT, "null", code::MALFORMED),
        Case::of(SUBMIT, "17", code::MALFORMED),
        Case::of(SUBMIT, &b"\xff\xfe\x00"[..], code::MALFORMED),
        Case::of(SUBMIT, "", code::INVALID).says("nothing to do"),
        Case::of(SUBMIT, "{}", code::INVALID).says("nothing to do"),
        Case::of(SUBMIT, deep.clone(), code::MALFORMED),
        Case::of(SUBMIT, closed.clone(), code::MALFORMED),
        Case::of(SUBMIT, in_field("tasks", &closed), code::MALFORMED),
        Case::of(SUBMIT, in_field("inputs", &closed), code::MALFORMED),
        Case::of(SUBMIT, in_field("nonsense", &closed), code::UNKNOWN_FIELD).field("nonsense"),
        // MessagePack: cut off, trailing, the wrong thing, deep.
        Case::of(SUBMIT, &b"\x81\xa4argv\x91"[..], code::MALFORMED).packed(),
        Case::of(SUBMIT, &b"\xc1"[..], code::MALFORMED).packed(),
        Case::of(SUBMIT, &b"\x81\xa4argv\x91\xa1a\x00"[..], code::MALFORMED).packed(),
        Case::of(SUBMIT, r#"{"argv":["a"]}"#, code::MALFORMED).packed(),
        Case::of(SUBMIT, vec![0x91; 900_000], code::MALFORMED).packed(),
        Case::of(SUBMIT, &b"\xdd\xff\xff\xff\xff"[..], code::MALFORMED).packed(),
        Case::of(SUBMIT, &b"\x81\xa4argv\xdd\xff\xff\xff\xff"[..], code::MALFORMED).packed(),
        // Positional fields are no message.
        Case::of(SUBMIT, &b"\x91\xa1a"[..], code::MALFORMED).packed(),
        Case::pack(SUBMIT, &json!({"argv": "uname"}), code::MALFORMED).field("argv"),
        Case::pack(SUBMIT, &json!({"argv": ["a"], "prority": 1}), code::UNKNOWN_FIELD)
            .field("prority")
            .says("did you mean `priority`?"),
    ];
    let typed = [
        (json!({"argv": "uname"}), "argv"),
        (json!({"argv": ["a", 1]}), "argv[1]"),
        (json!({"argv": ["a"], "timeout_s": "soon"}), "timeout_s"),
        (json!({"argv": ["a"], "timeout_s": -1}), "timeout_s"),
        (json!({"argv": ["a"], "name": 5}), "name"),
        (json!({"argv": ["a"], "priority": 1.5}), "priority"),
        (json!({"argv": ["a"], "retries": -1}), "retries"),
        (json!({"argv": ["a"], "env": {"A": 1}}), "env.A"),
        (json!({"argv": ["a"], "stdin": {"hex": "00"}}), "stdin"),
        (json!({"argv": ["a"], "lost": "never"}), "lost"),
        (json!({"argv": ["a"], "work": "mine"}), "work"),
        (json!({"argv": ["a"], "array": {"items": [1]}}), "array.items[0]"),
        (json!({"tasks": {"name": "a"}}), "tasks"),
        (json!({"tasks": [{"run": {"echo": ""}}]}), "tasks[0]"),
        (json!({"run": {}}), "run"),
        (json!({"run": {"echo": "", "process": {"argv": ["a"]}}}), "run"),
    ];
    for (body, field) in &typed {
        cases.push(Case::json(SUBMIT, body, code::MALFORMED).field(*field));
        cases.push(Case::pack(SUBMIT, body, code::MALFORMED).field(*field));
    }

    check_all(&house, cases).await;
}

#[tokio::test]
async fn a_field_that_there_is_not_gets_the_nearest_name() {
    let house = House::up(&[("home", "cpus=2")]).await;
    works(&house).await;
    let mut cases = Vec::new();
    for (body, field, said) in [
        (json!({"agrv": ["a"]}), "agrv", "did you mean `argv`?"),
        (json!({"argv": ["a"], "timeout": 5}), "timeout", "did you mean `timeout_s`?"),
        (json!({"run": {"proces": {"argv": ["a"]}}}), "run.proces", "did you mean `process`?"),
        (json!({"run": {"container": {}}}), "run.container", "process"),
        (
            json!({"tasks": [{"name": "a", "run": {"echo": ""}, "resources": {"cpu": 1}}]}),
            "tasks[0].resources.cpu",
            "did you mean `cpus`?",
        ),
        (
            json!({"tasks": [{"name": "a", "run": {"process": {"argv": ["a"], "evn": {}}}}]}),
            "tasks[0].run.process.evn",
            "did you mean `env`?",
        ),
        (json!({"argv": ["a"], "where": {"nod": "m4"}}), "where.nod", "did you mean `node`?"),
        (
            json!({"argv": ["a"], "resources": {"memory": 1}}),
            "resources.memory",
            "did you mean `memory_mib`?",
        ),
        (json!({"argv": ["a"], "lh": 1}), "lh", "there are: "),
    ] {
        cases.push(Case::json(SUBMIT, &body, code::UNKNOWN_FIELD).field(field).says(said));
        cases.push(Case::pack(SUBMIT, &body, code::UNKNOWN_FIELD).field(field).says(said));
        cases.push(Case::json("lh.work.run", &body, code::UNKNOWN_FIELD).field(field).says(said));
    }
    for (subject, body, field, said) in [
        ("lh.work.get", json!({"wrok": "x"}), "wrok", "did you mean `work`?"),
        ("lh.work.list", json!({"limits": 1}), "limits", "did you mean `limit`?"),
        ("lh.work.wait", json!({"work": "x", "hold": 1}), "hold", "did you mean `hold_s`?"),
        ("lh.work.follow", json!({"work": "x", "form": "1"}), "form", "did you mean `from`?"),
        ("lh.sched.main.drain", json!({"nod": "home"}), "nod", "did you mean `node`?"),
    ] {
        cases.push(Case::json(subject, &body, code::UNKNOWN_FIELD).field(field).says(said));
    }

    check_all(&house, cases).await;
}

#[tokio::test]
async fn a_work_that_makes_no_sense_is_refused() {
    let house = House::up(&[("home", "cpus=2")]).await;
    works(&house).await;
    let argv = |argv: Value| json!({"argv": argv});
    let tasks = |tasks: &[Value]| json!({"tasks": tasks});
    let with = |field: &str, value: Value| json!({"argv": ["a"], field: value});
    let main = "tasks[0].run.process.argv";
    let (invalid, large, malformed) = (code::INVALID, code::TOO_LARGE, code::MALFORMED);
    let cases = [
        (argv(json!([])), invalid, main, "`argv` is empty"),
        (argv(json!([""])), invalid, "tasks[0].run.process.argv[0]", "empty"),
        (argv(json!(["a", "b\0c"])), invalid, "tasks[0].run.process.argv[1]", "NUL"),
        (with("env", json!({"A=B": "c"})), invalid, "tasks[0].run.process.env.A=B", "A=B"),
        (with("env", json!({"A": "b\0c"})), invalid, "tasks[0].run.process.env.A", "NUL"),
        (tasks(&[]), invalid, "tasks", "at least one"),
        (tasks(&[task("a", &["b"]), task("b", &["a"])]), invalid, "tasks[0].needs", "a → b → a"),
        (tasks(&[task("a", &["a"])]), invalid, "tasks[0].needs", "a → a"),
        (
            tasks(&[task("first", &[]), task("b", &["frist"])]),
            invalid,
            "tasks[1].needs[0]",
            "did you mean `first`?",
        ),
        (tasks(&[task("a", &[]), task("b", &["a", "a"])]), invalid, "tasks[1].needs[1]", "twice"),
        (tasks(&[task("a", &[]), task("a", &[])]), invalid, "tasks[1].name", "two tasks"),
        (tasks(&[task("A b", &[])]), malformed, "tasks[0].name", "`A b` is not a name"),
        (tasks(&[task("", &[])]), malformed, "tasks[0].name", "is not a name"),
        (tasks(&[task("a.b", &[])]), malformed, "tasks[0].name", "`a.b` is not a name"),
        (tasks(&[task("*", &[])]), malformed, "tasks[0].name", "`*` is not a name"),
        (with("pool", json!("Main pool")), malformed, "pool", "is not a name"),
        (with("owner", json!(">")), malformed, "owner", "is not a name"),
        (with("pool", json!("other")), invalid, "pool", "main"),
        (with("priority", json!(101)), invalid, "priority", "101"),
        (with("name", json!("x".repeat(201))), invalid, "name", "200"),
        (with("retries", json!(10_001)), invalid, "tasks[0].retries", "10000"),
        (with("timeout_s", json!(0)), invalid, "tasks[0].timeout_s", "no limit"),
        (with("resources", json!({"memory_mib": -1})), malformed, "resources.memory_mib", "-1"),
        (with("resources", json!({"cpus": -1})), malformed, "resources.cpus", "-1"),
        (with("resources", json!({"cpus": 1e12})), malformed, "resources.cpus", "cores"),
        (with("resources", json!({"gpus": 0.5})), malformed, "resources.gpus", "0.5"),
        (
            with("resources", json!({"memory_mib": u64::MAX})),
            invalid,
            "tasks[0].resources.memory_mib",
            "which no machine has",
        ),
        (
            with("resources", json!({"custom": {"a b": 1}})),
            invalid,
            "tasks[0].resources.custom.a b",
            "a b",
        ),
        (
            with("array", json!({"count": 1_000_000_000_000_u64})),
            large,
            "tasks[0].array",
            "10000000",
        ),
        (with("array", json!({"count": -1})), malformed, "array.count", "-1"),
        (with("array", json!({})), invalid, "tasks[0].array", "either"),
        (with("array", json!({"count": 1, "items": []})), invalid, "tasks[0].array", "either"),
        (with("array", json!({"items": ["\0"]})), invalid, "tasks[0].array.items[0]", "NUL"),
        (
            with("array", json!({"items": ["a".repeat(70_000)]})),
            large,
            "tasks[0].array.items[0]",
            "65536",
        ),
        (
            with("outputs", json!([{"name": "x", "path": "../x"}])),
            invalid,
            "tasks[0].outputs[0].path",
            "inside the scratch folder",
        ),
        (with("inputs", json!([{}])), code::UNSUPPORTED, "tasks[0].inputs", "not built yet"),
        (json!({"argv": ["a"], "tasks": [task("a", &[])]}), invalid, "tasks", "exclude each other"),
        (json!({"argv": ["a"], "run": {"echo": ""}}), invalid, "argv", "exclude each other"),
        (with("work", json!("6fa459ea-ee8a-4ca4-894e-db77e160355e")), invalid, "work", "UUIDv7"),
        (
            with("work", json!("0198F0C2-7B5E-7CC3-98C4-DC0C0C07398F")),
            malformed,
            "work",
            "lower-case",
        ),
    ];
    let cases = cases.iter().flat_map(|(body, code, field, said)| {
        [
            Case::json(SUBMIT, body, code).field(*field).says(said),
            Case::json("lh.work.run", body, code).field(*field).says(said),
            Case::pack(SUBMIT, body, code).field(*field).says(said),
        ]
    });

    check_all(&house, cases.collect()).await;
}

#[tokio::test]
async fn what_no_node_could_ever_do_is_refused_with_the_nearest_miss() {
    let house = House::up(&[("home", "cpus=4,gpus=1"), ("office", "cpus=16")]).await;
    works(&house).await;
    let with = |field: &str, value: Value| json!({"argv": ["a"], field: value});
    let mut cases = Vec::new();
    for (body, field, said) in [
        (with("resources", json!({"cpus": 17})), "tasks[0].resources", "office lacks 1 cpu"),
        (with("resources", json!({"gpus": 2})), "tasks[0].resources", "home lacks 1 gpu"),
        (
            with("resources", json!({"cpus": 1, "memory_mib": 1 << 30})),
            "tasks[0].resources",
            "lacks",
        ),
        (with("resources", json!({"custom": {"camera": 1}})), "tasks[0].resources", "camera"),
        (with("where", json!({"node": "ofice"})), "tasks[0].where.node", "did you mean `office`?"),
        (with("where", json!({"site": "moon"})), "tasks[0].resources", "names no site"),
    ] {
        cases.push(Case::json(SUBMIT, &body, code::UNSATISFIABLE).field(field).says(said));
    }

    check_all(&house, cases).await;
}

#[tokio::test]
async fn what_is_not_there_is_named_with_what_is_near() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let id = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";
    let run = |body: Value| {
        let house = &house;
        async move { house.ask("lh.work.run", &body.to_string()).await }
    };
    run(json!({"work": id, "name": "thumbnails", "argv": ["true"]})).await;
    let mut cases = vec![
        Case::json(SUBMIT, &json!({"work": id, "argv": ["false"]}), code::ID_TAKEN).field("work"),
        Case::json("lh.work.run", &json!({"work": id, "argv": ["false"]}), code::ID_TAKEN)
            .field("work"),
        Case::json("lh.work.sumbit", &json!({}), code::UNKNOWN_VERB).says("did you mean `submit`?"),
        Case::json("lh.work.explode", &json!({}), code::UNKNOWN_VERB).says("there are: "),
        Case::json("lh.work.get.Anna", &json!({"work": id}), code::INVALID).field("caller"),
        Case::json("lh.sched.main.nodse", &json!({}), code::UNKNOWN_VERB)
            .says("did you mean `nodes`?"),
        Case::json("lh.sched.main.drain", &json!({"node": "hom"}), code::UNKNOWN_NODE)
            .field("node")
            .says("did you mean `home`?"),
        Case::json("lh.sched.main.explain", &json!({"node": "moon"}), code::UNKNOWN_NODE)
            .field("node"),
        Case::json("lh.sched.main.explain", &json!({}), code::INVALID).says("exactly one"),
        Case::json("lh.work.list", &json!({"from": "nonsense"}), code::BAD_CURSOR).field("from"),
        Case::json("lh.work.list", &json!({"states": ["finishd"]}), code::MALFORMED)
            .field("states[0]")
            .says("did you mean `finished`?"),
        Case::json("lh.work.list", &json!({"limit": -1}), code::MALFORMED).field("limit"),
        Case::json("lh.work.follow", &json!({"work": id, "from": "1.2.3"}), code::BAD_CURSOR)
            .field("from"),
        Case::json("lh.work.results", &json!({"work": id, "from": "x"}), code::BAD_CURSOR)
            .field("from"),
        Case::json("lh.work.results", &json!({"work": id, "task": "mian"}), code::UNKNOWN_TASK)
            .field("task")
            .says("did you mean `main`?"),
        Case::json("lh.work.follow", &json!({"work": id, "task": "mian"}), code::UNKNOWN_TASK)
            .field("task")
            .says("did you mean `main`?"),
        Case::json("lh.work.cancel", &json!({"work": id, "round": 7}), code::WRONG_ROUND)
            .field("round"),
        Case::json("lh.work.retry", &json!({"work": id}), code::NOTHING_FAILED),
        Case::json("lh.work.append", &json!({"work": id, "part": 1}), code::NOT_OPEN),
        Case::json("lh.work.close", &json!({"work": id, "parts": 0}), code::NOT_OPEN),
    ];
    for verb in ["get", "wait", "results", "cancel", "retry", "follow"] {
        let subject: &'static str = format!("lh.work.{verb}").leak();
        for (work, code, said) in [
            ("thumbnail", code::UNKNOWN_WORK, "did you mean `thumbnails`?"),
            ("0198f0c2-7b5e-7cc3-98c4-000000000000", code::UNKNOWN_WORK, "there is no work"),
            ("", code::INVALID, "`work` is empty"),
        ] {
            cases.push(Case::json(subject, &json!({"work": work}), code).field("work").says(said));
        }
        cases.push(Case::json(subject, &json!({"work": 17}), code::MALFORMED).field("work"));
        cases.push(Case::json(subject, &json!({}), code::MALFORMED).says("work"));
    }

    check_all(&house, cases).await;
}

/// Bytes that are no message of any kind, and some that nearly are.
fn garbage() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        &b""[..],
        b"garbage",
        b"\xff\x00\xfe",
        b"\xc1",
        b"null",
        b"{}",
        b"[1,2,3]",
        b"{\"entries\":[{}]}",
        b"{\"entries\":[{\"work\":\"0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f\",\"task\":\"x\"}]}",
        b"{\"node\":\"home\",\"instance\":7,\"epoch\":-1,\"n\":1e300}",
        b"\x81\xa6frames\x91\x80",
        b"\x81\xa6frames\xdd\xff\xff\xff\xff",
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .collect();
    all.push(vec![b'['; 900_000]);
    all.push(vec![0x91; 900_000]);
    all
}

#[tokio::test]
async fn garbage_on_every_subject_is_logged_and_the_house_goes_on() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let client = house.nats().await;
    let done = house.ask("lh.work.run", r#"{"name":"before","argv":["echo","before"]}"#).await;
    let id = done["work"].as_str().unwrap();
    let before = house.ask("lh.work.get", r#"{"work":"before"}"#).await;
    let other = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f";
    let subjects: Vec<(&str, Vec<String>)> = vec![
        ("beats", ["home", "nobody", "Bad"].map(|node| format!("lh.beat.{node}")).to_vec()),
        (
            "reports",
            ["home", "nobody", "Bad"].map(|node| format!("lh.report.main.{node}")).to_vec(),
        ),
        (
            "nodes",
            ["jobs", "stop", "held", "read", "dance"].map(|v| format!("lh.node.home.{v}")).to_vec(),
        ),
        (
            "outputs",
            vec![
                format!("lh.out.owner.{id}.stdout.home"),
                format!("lh.out.owner.{other}.stdout.home"),
                "lh.out.owner.nonsense.stdout.home".into(),
                "lh.out.nonsense".into(),
                format!("lh.live.owner.{id}.stdout.home"),
            ],
        ),
        ("acks", vec!["lh.ack.nonsense.owner".into(), "lh.ack.x".into()]),
        (
            "facts",
            schemas::fact::Fact::KINDS
                .iter()
                .filter(|kind| **kind != "epoch")
                .flat_map(|kind| {
                    [
                        format!("lh.fact.main.owner.{id}.{kind}"),
                        format!("lh.fact.main.owner.all.{kind}"),
                        format!("lh.fact.main.owner.nonsense.{kind}"),
                        format!("lh.fact.main.scheduler.home.{kind}"),
                    ]
                })
                .collect(),
        ),
    ];

    for (what, subjects) in &subjects {
        for subject in subjects {
            for body in garbage() {
                // A large one to each kind of subject is enough.
                if body.len() < 1000 || *subject == subjects[0] {
                    client.publish(subject.clone(), body.into()).await.unwrap();
                }
            }
        }
        client.flush().await.unwrap();
        let answer = house.ask("lh.work.run", r#"{"argv":["echo","still here"]}"#).await;
        assert_eq!(answer["stdout"], "still here\n", "after garbage on {what}: {answer}");
    }

    assert_eq!(house.ask("lh.work.get", r#"{"work":"before"}"#).await, before);
    let nodes = nodes(&house).await;
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    let followed = house.says(&["logs", "before"]).await;
    assert_eq!(followed, "before\n", "{followed}");
    quiet(&house);
    let logs = logs(&house);
    for subject in
        ["lh.beat.", "lh.report.main.", "lh.node.home.", "lh.out.owner.", "lh.fact.main."]
    {
        let named = logs.lines().any(|line| line.contains("WARN") && line.contains(subject));
        assert!(named, "nothing is logged about {subject}");
    }
}

/// Even a new scheduler and a new manager, which read everything again, are not led astray.
#[tokio::test]
async fn garbage_that_lies_in_the_journal_is_passed_over_at_every_start() {
    let mut house = House::new("");
    house.start(&["up", "--port", "0", "--only", "bus"]).await;
    let deciders = ["up", "--only", "manager", "--only", "scheduler"];
    house.start(&deciders).await;
    house.start(&["worker", "--name", "home", "--lend", "cpus=2"]).await;
    let done = house.ask("lh.work.run", r#"{"name":"before","argv":["echo","before"]}"#).await;
    let id = done["work"].as_str().unwrap();
    let client = house.nats().await;
    for body in garbage() {
        for kind in schemas::fact::Fact::KINDS.iter().filter(|kind| **kind != "epoch") {
            if body.len() < 1000 || *kind == "ended" {
                let subject = format!("lh.fact.main.owner.{id}.{kind}");
                client.publish(subject, body.clone().into()).await.unwrap();
            }
        }
        if body.len() < 1000 {
            // An epoch that nobody took: whoever acts is fenced out, and must take it again.
            client.publish("lh.fact.main.epoch", body.into()).await.unwrap();
        }
    }
    client.flush().await.unwrap();
    works(&house).await;
    let manager = house.processes.remove(1);
    manager.signal(rustix::process::Signal::TERM);
    let (status, said) = manager.ended().await;
    assert!(status.success(), "{status}: {said}");

    house.start(&deciders).await;
    works(&house).await;

    let before = house.ask("lh.work.get", r#"{"work":"before"}"#).await;
    assert_eq!(before["state"], "finished", "{before}");
    quiet(&house);
}
