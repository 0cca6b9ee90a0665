//! Decoders against what nobody means: valid messages that were damaged, and noise. Whatever comes,
//! a decoder answers with a value or a refusal, never with a panic, and claims no more memory than
//! the bytes it was given can justify.
//!
//! The inputs follow from a seed, which a failure prints. `LONGHOUSE_FUZZ_SEED` and
//! `LONGHOUSE_FUZZ_INPUTS` (both numbers) try others, and more of them.

#![expect(clippy::unwrap_used, reason = "a test may stop at what should not be")]

use schemas::{
    catalog::{self, Body, CATALOG, REFUSAL},
    codec::{self, Encoding},
    error::Refusal,
    fact::Fact,
    indices::Indices,
    output::Frames,
    subject,
    work::{Submit, check},
};
use serde_json::Value;
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// How many inputs each of the tests below decodes.
const INPUTS: u64 = 50_000;
const SEED: u64 = 20_261_124;
/// No refusal is longer, whatever it is about: it must fit into an answer.
const LONGEST_REFUSAL: usize = 16 * 1024;

/// One input, as it was said.
struct Input {
    subject: String,
    body: Body,
    encoding: Encoding,
    bytes: Vec<u8>,
}

/// A small generator of numbers: splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// Every message of the catalogue as somebody might say it, in each encoding.
fn valid(encoding: Encoding) -> Vec<Input> {
    let mut inputs = Vec::new();
    let mut add = |subject: &str, body: Option<Body>, example: Option<Value>| {
        let (Some(body), Some(example)) = (body, example) else { return };
        let json = serde_json::to_vec(&example).unwrap();
        let bytes = body.transcode_strictly(Encoding::Json, &json, encoding).unwrap();
        inputs.push(Input { subject: concrete(subject), body, encoding, bytes });
    };
    for entry in CATALOG {
        add(entry.subject, entry.body, entry.example());
        add("_INBOX.x", entry.answer.body(), entry.answer_example());
    }
    let refusal = Refusal::new("busy", "too much at once").hint("try later").field("tasks[0]");
    add(
        "_INBOX.x",
        Some(REFUSAL),
        serde_json::to_value(schemas::error::ErrorBody::from(refusal)).ok(),
    );
    inputs
}

/// A subject of a pattern.
fn concrete(pattern: &str) -> String {
    let full = pattern.replace(['[', ']'], "").replace("<work|all>", "<work>");
    full.replace("<work>", "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f").replace(['<', '>'], "")
}

/// Pieces that decoders may trip over.
const SPIKES: &[&[u8]] = &[
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"-0.0",
    b"1e-400",
    b"18446744073709551616",
    b"\"\"",
    b"\"\\ud800\"",
    b"\"\\u0000\"",
    b"NaN",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"[[0,4294967295]]",
    b"[[4294967295,4294967295]]",
    b"{\"base64\":\"====\"}",
    b"{\"base64\":\"\"}",
    b"[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"true",
    b"\"2026-11-23T03:42:03.123Z\"",
    b"\"-009999-01-02T01:59:59Z\"",
    b"\"9999-12-30T22:00:00.999999999Z\"",
    b"1000000",
    b"3153600000",
    b"99999999999999999999",
    b"\xc0",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xdc\xff\xff",
    b"\xde\xff\xff",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x91\x92\x00\xce\xff\xff\xff\xff",
    b"\xd4\xff\x00",
    b"\xd9\x01\xff",
    b"\xc4\x02\xff\xfe",
    b"\x81\xa6base64\xa1*",
    b"\x81\xc4\x01a\xc0",
    b"\x81\x01\x02",
];

/// Damages a message in one to four places.
fn damage(dice: &mut Dice, bytes: &mut Vec<u8>, others: &[Input]) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(12) {
            0 | 1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << dice.below(8);
            }
            2 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = dice.next() as u8;
            }
            3 => bytes.truncate(at),
            4 => {
                let end = (at + dice.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => drop(bytes.splice(at..at, dice.pick(SPIKES).iter().copied())),
            6 => {
                // In the place of what was there, up to the next comma or so.
                let spike = *dice.pick(SPIKES);
                let rest = bytes[at..].iter().position(|b| matches!(b, b',' | b'}' | b']'));
                let end = at + rest.unwrap_or(bytes.len() - at);
                bytes.splice(at..end, spike.iter().copied());
            }
            7 => {
                // The end of another message.
                let other = &dice.pick(others).bytes;
                let from = dice.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            8 => {
                // A piece of itself once more.
                let end = (at + dice.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            9 => {
                let noise: Vec<u8> = (0..dice.below(12)).map(|_| dice.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
            10 => {
                let nest = *dice.pick(&[b'[', b'{', 0x91, 0x81, 0xdd, b'"']);
                let depth = *dice.pick(&[3, 63, 64, 65, 127, 128, 129, 2_000]);
                bytes.splice(at..at, std::iter::repeat_n(nest, depth));
            }
            _ => {
                // A letter in a name, so that the name is nearly known.
                if let Some(n) = bytes.iter().skip(at).position(u8::is_ascii_lowercase) {
                    bytes[at + n] = b'a' + dice.below(26) as u8;
                }
            }
        }
    }
}

/// Damages a subject.
fn damage_subject(dice: &mut Dice, subject: &str) -> String {
    let mut tokens: Vec<String> = subject.split('.').map(str::to_owned).collect();
    let at = dice.below(tokens.len());
    match dice.below(6) {
        0 => drop(tokens.remove(at)),
        1 => tokens.insert(at, "x".to_owned()),
        2 => {
            tokens[at] =
                (*dice.pick(&["", "*", ">", "all", "scheduler", "epoch", "Ä", "a\0b"])).to_owned()
        }
        3 => tokens[at] = "a".repeat(dice.below(80)),
        4 => tokens.truncate(at),
        _ => {}
    }
    tokens.join(".")
}

/// What is done with bytes from the bus: always read as the message that they should be, and in one
/// of the other ways.
fn decode_somehow(dice: &mut Dice, input: &Input) {
    let Input { subject, body, encoding, bytes } = input;
    let read = dice.pick(&[Body::transcode_leniently, Body::transcode_strictly]);
    match read(body, *encoding, bytes, Encoding::Json) {
        Ok(json) => assert_said_again(body, &json),
        Err(refusal) => assert_refusal(&refusal),
    }
    match dice.below(6) {
        0 => drop(catalog::decode(subject, *encoding, bytes)),
        1 => read_subject(&damage_subject(dice, subject)),
        2 => read_fact(subject.rsplit('.').next().unwrap_or_default(), bytes),
        3 => {
            for frame in codec::decode::<Frames>(*encoding, bytes).unwrap_or_default().frames {
                assert!(frame.end() >= frame.offset);
            }
        }
        4 => {
            if let Ok(set) = codec::decode::<Indices>(*encoding, bytes) {
                use_indices(&set);
            }
        }
        _ => read_work(*encoding, bytes),
    }
}

/// What was read is something that can be said, and read again, in both encodings.
fn assert_said_again(body: &Body, json: &[u8]) {
    let pack = body.transcode_leniently(Encoding::Json, json, Encoding::MsgPack);
    let pack = pack.expect("what was written is read");
    let again = body.transcode_leniently(Encoding::MsgPack, &pack, Encoding::Json);
    let again = again.expect("what was written is read");
    let value = |json: &[u8]| serde_json::from_slice::<Value>(json).expect("written by us");
    let (first, second) = (value(json), value(&again));
    assert!(is_same(&first, &second), "{first} is not {second}");
}

/// Fractions may differ in their last digit: JSON's are read to the nearest but one.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && is_same(a.1, b.1))
        }
        (Value::Number(x), Value::Number(y)) if x.is_f64() && y.is_f64() => {
            let (x, y) = (x.as_f64().unwrap_or(0.0), y.as_f64().unwrap_or(0.0));
            (x - y).abs() <= x.abs() * 1e-12
        }
        _ => a == b,
    }
}

fn read_subject(said: &str) {
    let _ = (subject::parse_fact(said), subject::parse_out(said));
    if let Some(entry) = catalog::of_subject(said) {
        assert!(entry.parts(said).is_some());
    }
}

fn read_fact(kind: &str, bytes: &[u8]) {
    match Fact::from_json(kind, bytes) {
        Ok(fact) => {
            let again = Fact::from_json(fact.kind(), &fact.to_json()).expect("written by us");
            assert_eq!(again.works(), fact.works());
        }
        Err(error) => assert!(error.to_string().len() <= LONGEST_REFUSAL),
    }
}

fn read_work(encoding: Encoding, bytes: &[u8]) {
    let work = codec::decode_strict::<Submit>(encoding, bytes).and_then(check::normalise);
    if let Err(refusal) = work.and_then(|spec| check::check(&spec)) {
        assert_refusal(&refusal);
    }
}

/// Nothing here counts indices one by one: a set may hold four billion.
fn use_indices(set: &Indices) {
    let all = Indices::span(0, u32::MAX);
    assert_eq!(all.intersection(set), *set);
    assert!(all.contains_all(set));
    let mut rest = all.difference(set);
    assert_eq!(rest.len() + set.len(), 1 << 32);
    rest.insert_all(set);
    assert_eq!(rest, all);
    let mut taken = set.clone();
    assert_eq!(taken.take(set.len() / 2).len(), set.len() / 2);
    assert!(format!("{set:?}").len() < 300);
}

fn assert_refusal(refusal: &Refusal) {
    assert!(schemas::error::code::ALL.iter().any(|(code, _)| *code == refusal.code), "{refusal:?}");
    let length = serde_json::to_vec(refusal).unwrap().len();
    assert!(length <= LONGEST_REFUSAL, "a refusal of {length} bytes: {}", &refusal.message[..200]);
}

/// A number that the developer set.
#[expect(clippy::disallowed_methods, reason = "how long to look is said to the test only")]
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Largest address space that this process has had so far; `None` where the system does not say.
fn peak_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// Makes inputs out of the seed and decodes each.
fn fuzz(encoding: Encoding, stream: u64, make: impl Fn(&mut Dice, &[Input]) -> Input) {
    let seed = setting("LONGHOUSE_FUZZ_SEED", SEED);
    let valid = valid(encoding);
    let before = peak_mib();
    for n in 0..setting("LONGHOUSE_FUZZ_INPUTS", INPUTS) {
        let mut dice = Dice(seed ^ (stream << 56) ^ n.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        let input = make(&mut dice, &valid);
        let run = catch_unwind(AssertUnwindSafe(|| decode_somehow(&mut dice, &input)));
        assert!(
            run.is_ok(),
            "seed {seed}, input {n}: {} as {} on {}: {:?}",
            input.body.type_name(),
            encoding.name(),
            input.subject,
            String::from_utf8_lossy(&input.bytes[..input.bytes.len().min(2_000)]),
        );
    }
    // Room for the tests that run beside this one.
    if let (Some(before), Some(after)) = (before, peak_mib()) {
        assert!(
            after - before < 1024,
            "{} MiB were claimed for inputs of a few KB",
            after - before
        );
    }
}

fn damaged(encoding: Encoding) -> impl Fn(&mut Dice, &[Input]) -> Input {
    move |dice, valid| {
        let chosen = dice.pick(valid);
        let mut bytes = chosen.bytes.clone();
        damage(dice, &mut bytes, valid);
        Input { subject: chosen.subject.clone(), body: chosen.body, encoding, bytes }
    }
}

/// Noise, and messages where others are expected.
fn strange(encoding: Encoding) -> impl Fn(&mut Dice, &[Input]) -> Input {
    move |dice, valid| {
        let chosen = dice.pick(valid);
        let bytes = match dice.below(4) {
            0 => (0..dice.below(200)).map(|_| dice.next() as u8).collect(),
            1 => (0..dice.below(40)).flat_map(|_| *dice.pick(SPIKES)).copied().collect(),
            2 => dice.pick(valid).bytes.clone(),
            _ => {
                // A list or a map that claims more than there is, all the way down.
                let (list, key) = match encoding {
                    Encoding::Json => (&b"{\"tasks\":["[..], &b"{\"frames\":"[..]),
                    Encoding::MsgPack => (
                        &b"\xdf\xff\xff\xff\xff\xa5tasks\xdd\xff\xff\xff\xff"[..],
                        &b"\x81\xa6frames\xdd\x7f\xff\xff\xff\x86"[..],
                    ),
                };
                let mut bytes = Vec::new();
                for _ in 0..=dice.below(200) {
                    bytes.extend_from_slice(if dice.below(3) == 0 { key } else { list });
                }
                bytes
            }
        };
        Input { subject: chosen.subject.clone(), body: chosen.body, encoding, bytes }
    }
}

#[test]
fn damaged_json_is_read_or_refused() {
    fuzz(Encoding::Json, 1, damaged(Encoding::Json));
}

#[test]
fn damaged_messagepack_is_read_or_refused() {
    fuzz(Encoding::MsgPack, 2, damaged(Encoding::MsgPack));
}

#[test]
fn noise_and_mistaken_json_are_read_or_refused() {
    fuzz(Encoding::Json, 3, strange(Encoding::Json));
}

#[test]
fn noise_and_mistaken_messagepack_are_read_or_refused() {
    fuzz(Encoding::MsgPack, 4, strange(Encoding::MsgPack));
}

/// As large as the bus lets through, and made to be expensive.
#[test]
fn messages_as_large_as_the_bus_allows_are_read_or_refused() {
    const SIZE: usize = 1 << 20;
    let long = "k".repeat(SIZE - 100);
    let mut json: Vec<(&str, String)> = vec![
        ("a long key", format!(r#"{{"{long}":1}}"#)),
        ("a long name", format!(r#"{{"name":"{long}","argv":["a"]}}"#)),
        ("a long environment variable", format!(r#"{{"argv":["a"],"env":{{"{long}":1}}}}"#)),
        (
            "a long environment variable that is none",
            format!(r#"{{"argv":["a"],"env":{{"={long}":"1"}}}}"#),
        ),
        ("a long runner", format!(r#"{{"run":{{"{long}":1}}}}"#)),
        ("a long enum", format!(r#"{{"argv":["a"],"lost":"{long}"}}"#)),
        ("a long token", format!(r#"{{"argv":["a"],"pool":"{long}"}}"#)),
        ("a long number", format!(r#"{{"argv":["a"],"retries":{}}}"#, "9".repeat(SIZE - 100))),
        ("a long path", format!(r#"{{"argv":["a"],"outputs":[{{"name":"a","path":"/{long}"}}]}}"#)),
        (
            "a long name of an output",
            format!(r#"{{"argv":["a"],"outputs":[{{"name":"{long}","path":"a"}}]}}"#),
        ),
        ("a long resource", format!(r#"{{"argv":["a"],"resources":{{"custom":{{"{long}":1}}}}}}"#)),
        ("a string for a number", format!(r#"{{"argv":["a"],"priority":"{long}"}}"#)),
        ("a long base64", format!(r#"{{"argv":["a"],"stdin":{{"base64":"{long}"}}}}"#)),
        ("an array of 10^12", r#"{"argv":["a"],"array":{"count":1000000000000}}"#.to_owned()),
    ];
    let many = |piece: &str| {
        let pieces: Vec<String> =
            (0..SIZE / (piece.len() + 8)).map(|n| piece.replace('#', &n.to_string())).collect();
        pieces.join(",")
    };
    json.push(("many unknown fields", format!("{{{}}}", many(r#""a#":0"#))));
    json.push(("many same fields", format!("{{{}}}", many(r#""name":"a""#))));
    json.push((
        "many tasks",
        format!(r#"{{"tasks":[{}]}}"#, many(r#"{"name":"t#","run":{"echo":""}}"#)),
    ));
    json.push((
        "one task that needs many",
        format!(r#"{{"tasks":[{{"name":"a","run":{{"echo":""}},"needs":[{}]}}]}}"#, many("\"t#\"")),
    ));
    json.push((
        "many tasks in a chain without a beginning",
        format!(
            r#"{{"tasks":[{{"name":"z","run":{{"echo":""}},"needs":["t9999"]}},{}]}}"#,
            (0..10_000)
                .map(|n| {
                    let need = if n == 0 { "z".to_owned() } else { format!("t{}", n - 1) };
                    format!(r#"{{"name":"t{n}","run":{{"echo":""}},"needs":["{need}"]}}"#)
                })
                .collect::<Vec<_>>()
                .join(",")
        ),
    ));
    json.push((
        "many empty items",
        format!(r#"{{"argv":["a"],"array":{{"items":[{}]}}}}"#, many("\"\"")),
    ));
    let body = catalog::find("work.submit").and_then(|entry| entry.body).unwrap();
    for (name, text) in json {
        let mut dice = Dice(SEED);
        let input = Input {
            subject: "lh.work.submit".to_owned(),
            body,
            encoding: Encoding::Json,
            bytes: text.into_bytes(),
        };
        let run = catch_unwind(AssertUnwindSafe(|| {
            decode_somehow(&mut dice, &input);
            read_work(Encoding::Json, &input.bytes);
            read_fact("accepted", &input.bytes);
            catalog::decode(&input.subject, Encoding::Json, &input.bytes);
        }));
        assert!(run.is_ok(), "{name}");
    }
}

/// As many ranges as fit into one message, each apart from the next.
#[test]
fn sets_of_many_ranges_cost_no_more_than_their_length() {
    let ranges = |from: u32| -> Indices {
        let text: Vec<String> =
            (0..150_000u32).map(|n| format!("[{0},{0}]", from + 3 * n)).collect();
        serde_json::from_str(&format!("[{}]", text.join(","))).unwrap()
    };
    let (a, b) = (ranges(0), ranges(1));
    use_indices(&a);
    let mut both = a.clone();
    both.insert_all(&b);
    assert_eq!(both.len(), 300_000);
    assert_eq!(both.difference(&a), b);
    assert!(a.intersection(&b).is_empty());
    both.remove_all(&b);
    assert_eq!(both, a);
}
