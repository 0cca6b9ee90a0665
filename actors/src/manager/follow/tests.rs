//! What a follower is told, and that a break changes nothing of it.

use super::*;
use schemas::{
    fact::{Accepted, Ended, Finished, FinishedEntry},
    outcome::{Ending, IndexState, WorkState},
    token::CallerName,
};
use uuid::Uuid;

fn work(n: u128) -> WorkId {
    WorkId(Uuid::from_u128(n))
}

fn name() -> TaskName {
    TaskName::main()
}

fn node() -> NodeName {
    NodeName::new("m4").unwrap()
}

fn frame(index: Index, offset: u64, text: &str) -> Frame {
    Frame { task: name(), index, attempt: 1, offset, bytes: Blob::from(text.to_owned()), gap: None }
}

fn gap(index: Index, offset: u64, gap: u64) -> Frame {
    Frame { task: name(), index, attempt: 1, offset, bytes: Blob::default(), gap: Some(gap) }
}

fn ended(n: u128, indices: Indices, inline: &str, stdout_bytes: u64) -> EndedEntry {
    let mut ending = Ending::new(IndexState::Finished);
    ending.node = Some(node());
    ending.stdout = Blob::from(inline.to_owned());
    ending.stdout_bytes = stdout_bytes;
    EndedEntry { work: work(n), task: name(), indices, attempt: 1, ending, again_s: None }
}

fn all_ended(entries: Vec<EndedEntry>) -> Arc<Fact> {
    Arc::new(Fact::Ended(Ended { epoch: 1, entries }))
}

/// `index:offset=text`, `kind`, `index:offset+gap`
fn show(line: &Line) -> String {
    match &line.what {
        What::Fact(fact) => fact.kind.clone(),
        What::Output(o, _) => match o.gap {
            Some(gap) => format!("{}:{}+{gap}", o.index, o.offset),
            None => format!("{}:{}={}", o.index, o.offset, o.bytes.to_text()),
        },
    }
}

fn following(from: Cursor) -> Following {
    Following::new(work(1), None, None, from)
}

enum Tell {
    Fact(Seq, Arc<Fact>),
    Out(Seq, Vec<Frame>),
}

fn tell(follower: &mut Following, tell: &Tell) -> Vec<Line> {
    match tell {
        Tell::Fact(seq, fact) => {
            follower.fact(*seq, Stamp(*seq), fact.clone());
            std::iter::from_fn(|| follower.next()).collect()
        }
        Tell::Out(seq, frames) => {
            let frames = frames.iter().map(|frame| (frame.clone(), true)).collect();
            follower.frames(*seq, (&StreamName::stdout(), &node()), frames, false).into()
        }
    }
}

fn said(follower: &mut Following, story: &[Tell]) -> Vec<String> {
    story.iter().flat_map(|t| tell(follower, t)).map(|line| show(&line)).collect()
}

#[test]
fn one_message_over_many_works_is_unfolded_to_the_followed_one() {
    let mut follower = following(Cursor::default());
    let fact = Fact::Finished(Finished {
        epoch: 1,
        entries: [2, 1, 3]
            .map(|n| FinishedEntry {
                work: work(n),
                round: 0,
                state: WorkState::Finished,
                why: None,
                ended_at: Stamp(1),
            })
            .into(),
    });
    follower.fact(7, Stamp(1), Arc::new(fact));
    let line = follower.next().unwrap();
    let What::Fact(fact) = &line.what else { panic!("{line:?}") };
    assert_eq!(fact.body["work"], work(1).to_string());
    assert!(follower.next().is_none());
}

#[test]
fn what_is_only_in_the_outcome_is_said_and_what_was_said_is_not_said_again() {
    let story = [
        Tell::Out(1, vec![frame(0, 0, "he")]),
        Tell::Fact(5, all_ended(vec![ended(1, [0, 2].into_iter().collect(), "hello", 5)])),
        Tell::Out(2, vec![frame(0, 2, "llo"), frame(2, 0, "hello")]),
    ];
    let mut follower = following(Cursor::default());
    assert_eq!(said(&mut follower, &story), ["0:0=he", "ended", "0:2=llo", "2:0=hello"]);
    assert!(!follower.lacks());
}

#[test]
fn a_reader_is_done_when_he_has_the_whole_length() {
    let mut follower = following(Cursor::default());
    let story = [Tell::Fact(5, all_ended(vec![ended(1, Indices::one(0), "ab", 6)]))];
    assert_eq!(said(&mut follower, &story), ["ended", "0:0=ab"]);
    assert!(follower.lacks());
    let story = [Tell::Out(1, vec![frame(0, 0, "ab"), gap(0, 2, 3), frame(0, 5, "f")])];
    assert_eq!(said(&mut follower, &story), ["0:2+3", "0:5=f"]);
    assert!(!follower.lacks());
    // What comes again from a node that was not answered changes nothing.
    assert!(said(&mut follower, &story).is_empty());
}

#[test]
fn frames_behind_a_hole_wait_until_it_is_filled_or_given_up() {
    let mut follower = following(Cursor::default());
    let story = [
        Tell::Out(1, vec![frame(0, 0, "a")]),
        Tell::Out(2, vec![frame(0, 2, "c")]),
        Tell::Out(3, vec![frame(0, 1, "b")]),
        Tell::Out(4, vec![frame(0, 2, "c")]),
    ];
    assert_eq!(said(&mut follower, &story), ["0:0=a", "0:1=b", "0:2=c"]);
    let mut follower = following(Cursor::default());
    assert_eq!(said(&mut follower, &story[..2]), ["0:0=a"]);
    assert_eq!(follower.step_over_holes(), Some(2));
    assert_eq!(said(&mut follower, &story[1..2]), ["0:2=c"]);
}

#[test]
fn live_frames_are_shown_beyond_the_stored_half_and_meet_the_ring() {
    let mut follower = following(Cursor::default());
    let at = (&StreamName::stdout(), &node());
    said(&mut follower, &[Tell::Out(1, vec![frame(0, 0, "1234")])]);
    assert!(follower.live(at, frame(0, 6, "78"), 8).is_empty(), "the stream brings 4 to 8");
    let lines = follower.live(at, frame(0, 4, "56"), 4);
    assert_eq!(lines.iter().map(show).collect::<Vec<_>>(), ["0:4=56"]);
    let lines = follower.live(at, frame(0, 8, "9a"), 4);
    assert_eq!(lines.iter().map(show).collect::<Vec<_>>(), ["0:8=9a"]);
    let story = [Tell::Out(2, vec![gap(0, 4, 5), frame(0, 9, "abc")])];
    assert_eq!(said(&mut follower, &story), ["0:10=bc"]);
}

#[test]
fn only_the_wanted_task_and_index_are_shown_but_every_fact() {
    let mut follower = Following::new(work(1), Some(name()), Some(2), Cursor::default());
    let story = [
        Tell::Out(1, vec![frame(1, 0, "x"), frame(2, 0, "y")]),
        Tell::Fact(5, all_ended(vec![ended(1, Indices::span(0, 3), "yz", 2)])),
    ];
    assert_eq!(said(&mut follower, &story), ["2:0=y", "ended", "2:1=z"]);
    assert!(!follower.lacks());
}

#[test]
fn pieces_do_not_cut_characters() {
    let text = "ä".repeat(PIECE);
    let mut follower = following(Cursor::default());
    let lines = tell(&mut follower, &Tell::Out(1, vec![frame(0, 1, &text)]));
    assert!(lines.is_empty(), "behind a hole");
    let mut follower = following(Cursor::default());
    let odd = format!("x{text}");
    let lines = tell(&mut follower, &Tell::Out(1, vec![frame(0, 0, &odd)]));
    let mut whole = String::new();
    for line in &lines {
        let What::Output(output, _) = &line.what else { panic!() };
        assert_eq!(output.offset as usize, whole.len());
        whole.push_str(std::str::from_utf8(&output.bytes.0).unwrap());
    }
    assert_eq!(whole, odd);
    assert!(lines.len() > 1);
}

/// A break after every single reply, in every story: what is said before and after it together is
/// what is said without it.
#[test]
fn a_break_anywhere_changes_nothing() {
    let spec = Arc::new(serde_json::from_str(r#"{"tasks":[]}"#).unwrap());
    let accepted = Accepted { work: work(1), by: CallerName::owner(), spec };
    let long = "0123456789".repeat(PIECE / 4);
    let story = [
        Tell::Fact(1, Arc::new(Fact::Accepted(accepted))),
        Tell::Out(1, vec![frame(0, 0, "ab"), frame(1, 0, &long)]),
        Tell::Out(2, vec![frame(0, 0, "ab"), frame(0, 2, "cd")]),
        Tell::Fact(
            4,
            all_ended(vec![
                ended(2, Indices::one(0), "other", 5),
                ended(1, Indices::span(0, 2), "abcdef", 6),
            ]),
        ),
        Tell::Out(3, vec![frame(0, 4, "ef"), frame(2, 0, "abcdef"), gap(3, 0, 9)]),
    ];
    let lines: Vec<Line> = {
        let mut follower = following(Cursor::default());
        story.iter().flat_map(|t| tell(&mut follower, t)).collect()
    };
    assert!(lines.len() > 8, "{}", lines.len());
    for n in 0..lines.len() {
        let from: Cursor = lines[n].cursor.to_string().parse().unwrap();
        let mut follower = following(from);
        let rest: Vec<String> =
            story.iter().flat_map(|t| tell(&mut follower, t)).map(|line| show(&line)).collect();
        let expected: Vec<String> = lines[n + 1..].iter().map(show).collect();
        assert_eq!(rest, expected, "after {}", show(&lines[n]));
        assert!(!follower.lacks());
    }
}

#[test]
fn what_is_no_cursor_is_refused() {
    for bad in ["", "1", "1.2.3.4", "1.2.3.4.5.6", "a.b.c.d.e", "-1.0.0.0.0"] {
        assert!(bad.parse::<Cursor>().is_err(), "{bad}");
    }
}
