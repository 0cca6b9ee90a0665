//! Sends works to the manager: whole where they fit into one message, else as open works in parts.

use crate::client::{House, perhaps_done};
use schemas::{
    error::{Refusal, code},
    fact::MoreItems,
    id::WorkId,
    outcome::Summary,
    request::{Append, AppendedReply, Close, Submitted},
    token::TaskName,
    work::{Array, Submit, Task, check},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A message may be so large, and so may the fact that is made of it, which is always JSON.
pub(crate) const LARGEST_BYTES: usize = bus::MAX_BODY - 4096;

/// One part of an open work.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    pub(crate) tasks: Vec<Arc<Task>>,
    pub(crate) items: Option<MoreItems>,
}

/// Submits a work that has an id, in parts if need be.
pub(crate) async fn submit(
    house: &House,
    mut submit: Submit,
    patience: Option<Duration>,
) -> anyhow::Result<Submitted> {
    let work = *submit.work.get_or_insert_with(crate::job_options::fresh_work);
    let lost = |error| perhaps_done(error, work);
    if json_len(&submit) <= LARGEST_BYTES {
        return house.patiently("submit", &submit, patience).await.map_err(lost);
    }
    let stays_open = submit.open;
    let spec = check::normalise(submit.clone())?;
    let parts = parts(spec.tasks, LARGEST_BYTES)?;
    let head = Submit {
        work: submit.work,
        name: spec.name,
        owner: submit.owner,
        pool: Some(spec.pool),
        priority: spec.priority,
        open: true,
        open_timeout_s: spec.open_timeout_s,
        lost_after_s: spec.lost_after_s,
        tasks: Some(Vec::new()),
        ..Submit::default()
    };
    let submitted: Submitted = house.patiently("submit", &head, patience).await.map_err(lost)?;
    let mut count = 0;
    for part in parts {
        count += 1;
        append(house, work, count, part).await?;
    }
    if !stays_open {
        close(house, work, count).await?;
    }
    Ok(submitted)
}

/// Adds a part to an open work; said again, it is the same part and added once.
pub(crate) async fn append(
    house: &House,
    work: WorkId,
    part: u32,
    content: Part,
) -> Result<(), bus::Error> {
    let Part { tasks, items } = content;
    let request = Append { work: work.to_string(), part, tasks, items };
    house.patiently::<AppendedReply>("append", &request, None).await.map(drop)
}

/// Says that an open work is complete.
pub(crate) async fn close(house: &House, work: WorkId, parts: u32) -> Result<(), bus::Error> {
    let request = Close { work: work.to_string(), parts };
    house.patiently::<Summary>("close", &request, None).await.map(drop)
}

/// How large something becomes as JSON.
pub(crate) fn json_len(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("messages have string keys only");
    count.0
}

/// How large an item becomes in a list in JSON.
pub(crate) fn item_len(item: &str) -> usize {
    let escaped = |b: u8| match b {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    item.bytes().map(escaped).sum::<usize>() + 3
}

/// Shares tasks out into parts of at most `largest` bytes, what is needed before what needs it.
fn parts(tasks: Vec<Arc<Task>>, largest: usize) -> Result<Vec<Part>, Refusal> {
    // The envelope around the content of a part.
    let largest = largest - 512;
    let mut out = Vec::new();
    let (mut now, mut bytes) = (Part::default(), 0);
    for task in ordered(tasks) {
        let len = json_len(&task) + 1;
        if bytes + len > largest && !now.tasks.is_empty() {
            out.push(std::mem::take(&mut now));
            bytes = 0;
        }
        if len <= largest {
            now.tasks.push(task);
            bytes += len;
        } else {
            split(&task, largest, &mut out)?;
        }
    }
    if !now.tasks.is_empty() {
        out.push(now);
    }
    Ok(out)
}

/// A task with more items than fit into one part: the first come with it, the others follow.
fn split(task: &Task, largest: usize, out: &mut Vec<Part>) -> Result<(), Refusal> {
    let too_large = || {
        let message = format!("the task `{}` alone is larger than one message may be", task.name);
        Refusal::new(code::TOO_LARGE, message)
            .field("tasks")
            .hint("put what is large where the job can read it, and give it the path")
    };
    let items = task.array.as_ref().and_then(|array| array.items.as_deref());
    let items = items.ok_or_else(too_large)?;
    let bare = Task { array: Some(Array { count: None, items: Some(Vec::new()) }), ..task.clone() };
    let room = largest.checked_sub(json_len(&bare)).ok_or_else(too_large)?;
    for (n, chunk) in chunks(items, room).enumerate() {
        out.push(if n == 0 {
            let array = Some(Array { count: None, items: Some(chunk.to_vec()) });
            Part { tasks: vec![Arc::new(Task { array, ..task.clone() })], items: None }
        } else {
            let items = MoreItems { task: task.name.clone(), items: chunk.to_vec() };
            Part { tasks: Vec::new(), items: Some(items) }
        });
    }
    Ok(())
}

/// Pieces of a list that become at most `largest` bytes each; an item that is larger is alone.
pub(crate) fn chunks(items: &[Arc<str>], largest: usize) -> impl Iterator<Item = &[Arc<str>]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|item| {
            bytes += item_len(item);
            bytes <= largest
        });
        let count = fits.count().max(1).min(rest.len());
        let (chunk, after) = rest.split_at(count);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// What is needed before what needs it; otherwise as it was. There are no circles: it was checked.
fn ordered(tasks: Vec<Arc<Task>>) -> Vec<Arc<Task>> {
    let is_ordered = {
        let mut seen: BTreeSet<&TaskName> = BTreeSet::new();
        tasks.iter().all(|task| {
            let met = task.needs.iter().all(|need| seen.contains(need));
            seen.insert(&task.name);
            met
        })
    };
    if is_ordered {
        return tasks;
    }
    let by_name: BTreeMap<TaskName, usize> =
        tasks.iter().enumerate().map(|(n, task)| (task.name.clone(), n)).collect();
    let mut placed = vec![false; tasks.len()];
    let mut out = Vec::with_capacity(tasks.len());
    for first in 0..tasks.len() {
        // Depth first, without recursion: a chain may be long.
        let mut stack = vec![(first, 0)];
        while let Some((n, need)) = stack.pop() {
            if placed[n] {
                continue;
            }
            match tasks[n].needs.get(need).and_then(|name| by_name.get(name)) {
                Some(&needed) => {
                    stack.push((n, need + 1));
                    stack.push((needed, 0));
                }
                None => {
                    placed[n] = true;
                    out.push(tasks[n].clone());
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, needs: &[&str], items: Option<usize>) -> Arc<Task> {
        let mut task: Task = serde_json::from_value(serde_json::json!({
            "name": name, "needs": needs, "run": {"process": {"argv": ["true"]}},
        }))
        .unwrap();
        task.array = items.map(|count| Array {
            count: None,
            items: Some((0..count).map(|n| format!("item \"{n}\"").into()).collect()),
        });
        Arc::new(task)
    }

    fn names(tasks: &[Arc<Task>]) -> Vec<&str> {
        tasks.iter().map(|task| task.name.as_str()).collect()
    }

    #[test]
    fn what_is_needed_is_sent_first() {
        let tasks = vec![
            task("c", &["b"], None),
            task("a", &[], None),
            task("b", &["a"], None),
            task("d", &["a", "c"], None),
        ];
        assert_eq!(names(&ordered(tasks)), ["a", "b", "c", "d"]);
        let fine = vec![task("z", &[], None), task("a", &["z"], None)];
        assert_eq!(names(&ordered(fine)), ["z", "a"]);
    }

    #[test]
    fn no_part_is_larger_than_a_message_and_no_item_is_lost() {
        let tasks = vec![task("a", &[], None), task("many", &["a"], Some(10_000))];
        let parts = parts(tasks, 20_000).unwrap();
        assert!(parts.len() > 5);
        let (mut items, mut named) = (Vec::new(), Vec::new());
        for (n, part) in parts.iter().enumerate() {
            let append = Append {
                work: "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f".into(),
                part: n as u32,
                tasks: part.tasks.clone(),
                items: part.items.clone(),
            };
            assert!(json_len(&append) <= 20_000, "{}", json_len(&append));
            for task in &part.tasks {
                named.push(task.name.to_string());
                let array = task.array.as_ref().and_then(|array| array.items.clone());
                items.extend(array.unwrap_or_default());
            }
            items.extend(part.items.iter().flat_map(|more| more.items.clone()));
        }
        assert_eq!(named, ["a", "many"]);
        let expected: Vec<Arc<str>> = (0..10_000).map(|n| format!("item \"{n}\"").into()).collect();
        assert_eq!(items, expected);
    }

    #[test]
    fn a_task_that_cannot_be_split_is_refused_by_name() {
        let mut big = (*task("big", &[], None)).clone();
        big.run = schemas::work::Run::Echo(vec![b'x'; 30_000].into());
        let refusal = parts(vec![Arc::new(big)], 20_000).unwrap_err();
        assert_eq!(&*refusal.code, code::TOO_LARGE);
        assert!(refusal.message.contains("`big`"));
    }

    #[test]
    fn the_length_of_an_item_is_that_of_its_json() {
        for item in ["", "plain", "a\"b\\c", "tab\tline\n", "\u{1}\u{7f}", "größer 😀"] {
            assert_eq!(item_len(item), json_len(&item) + 1, "{item:?}");
        }
    }
}
