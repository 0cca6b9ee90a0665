//! What a work must be before it is accepted. Each refusal names the field and the next step.

use super::*;
use crate::error::{Refusal, code};
use std::collections::BTreeSet;

/// Largest amount of anything that may be asked for.
const ABSURD: u64 = 1 << 40;
/// Longest command line, arguments and environment together, in bytes.
const MAX_ARGS: usize = 512 * 1024;
/// Largest `stdin` of a task, in bytes.
pub const MAX_STDIN: usize = 512 * 1024;

/// Puts a submit into its one form: defaults filled in, the short form unfolded.
pub fn normalise(submit: Submit) -> Result<WorkSpec, Refusal> {
    let short = submit.argv.is_some()
        || submit.run.is_some()
        || submit.array.is_some()
        || submit.inputs.is_some()
        || submit.outputs.is_some()
        || submit.resources.is_some()
        || submit.place.is_some()
        || submit.retries.is_some()
        || submit.lost.is_some()
        || submit.timeout_s.is_some()
        || submit.env_from_node.is_some()
        || submit.lifetime.is_some()
        || submit.output.is_some()
        || submit.stdin.is_some()
        || !submit.env.is_empty();
    let tasks = match submit.tasks {
        Some(_) if short => {
            return Err(Refusal::new(
                code::INVALID,
                "`tasks` and the fields of a single task (`argv`, `run`, `array` …) exclude each other",
            )
            .field("tasks")
            .hint("put the fields of the single task into one entry of `tasks`"));
        }
        Some(tasks) => tasks,
        None if !short && submit.open => Vec::new(),
        None => {
            let run = match (submit.argv, submit.run) {
                (Some(argv), None) => {
                    Run::Process(Process { argv, env: submit.env, stdin: submit.stdin })
                }
                (None, Some(run)) => {
                    if !submit.env.is_empty() || submit.stdin.is_some() {
                        return Err(Refusal::new(
                            code::INVALID,
                            "`env` and `stdin` beside `run` have no meaning",
                        )
                        .field("env")
                        .hint("put them into `run.process`"));
                    }
                    run
                }
                (Some(_), Some(_)) => {
                    return Err(Refusal::new(code::INVALID, "`argv` and `run` exclude each other")
                        .field("argv"));
                }
                (None, None) => {
                    return Err(Refusal::new(code::INVALID, "it says nothing to do").hint(
                        "give `argv` (one command), `run`, or `tasks`; \
                         for example {\"argv\":[\"uname\",\"-a\"]}",
                    ));
                }
            };
            vec![Arc::new(Task {
                name: TaskName::main(),
                needs: Vec::new(),
                run,
                array: submit.array,
                inputs: submit.inputs.unwrap_or_default(),
                outputs: submit.outputs.unwrap_or_default(),
                resources: submit.resources.unwrap_or_default(),
                place: submit.place.unwrap_or_default(),
                retries: submit.retries.unwrap_or_default(),
                lost: submit.lost.unwrap_or_default(),
                timeout_s: submit.timeout_s,
                env_from_node: submit.env_from_node.unwrap_or_default(),
                lifetime: submit.lifetime.unwrap_or_default(),
                output: submit.output.unwrap_or_default(),
            })]
        }
    };
    Ok(WorkSpec {
        name: submit.name,
        priority: submit.priority,
        pool: submit.pool.unwrap_or_else(PoolName::main),
        open: submit.open,
        open_timeout_s: submit.open_timeout_s,
        lost_after_s: submit.lost_after_s,
        tasks,
    })
}

/// Checks a whole work: shape, limits, names, graph.
pub fn check(spec: &WorkSpec) -> Result<(), Refusal> {
    if spec.name.chars().count() > MAX_NAME {
        return Err(invalid("name", format!("`name` is longer than {MAX_NAME} characters")));
    }
    if spec.name.chars().any(char::is_control) {
        return Err(invalid("name", "`name` has a control character in it"));
    }
    if spec.name.starts_with('@') {
        return Err(invalid(
            "name",
            "`name` begins with `@`, as `@last` does: nobody could ask for it",
        )
        .hint("leave the `@` out"));
    }
    if !(-100..=100).contains(&spec.priority) {
        return Err(invalid(
            "priority",
            format!("`priority` is {}, not −100 to 100", spec.priority),
        ));
    }
    if spec.tasks.is_empty() && !spec.open {
        return Err(invalid("tasks", "`tasks` is empty").hint("give at least one task"));
    }
    let items = check_tasks(&spec.tasks, &BTreeSet::new())?;
    if items > MAX_ITEMS {
        return Err(too_many_items(items));
    }
    Ok(())
}

/// Checks tasks that join `known` ones; says how many bytes of items they bring.
pub fn check_tasks(tasks: &[Arc<Task>], known: &BTreeSet<TaskName>) -> Result<usize, Refusal> {
    if tasks.len() + known.len() > MAX_TASKS {
        return Err(Refusal::new(
            code::TOO_LARGE,
            format!("{} tasks are more than {MAX_TASKS}", tasks.len() + known.len()),
        )
        .field("tasks")
        .hint("tasks that are alike are one task with `array`"));
    }
    let mut names: BTreeMap<&TaskName, usize> = BTreeMap::new();
    let mut items = 0usize;
    for (n, task) in tasks.iter().enumerate() {
        if known.contains(&task.name) || names.insert(&task.name, n).is_some() {
            return Err(invalid(
                &format!("tasks[{n}].name"),
                format!("two tasks are named `{}`", task.name),
            ));
        }
        items = items.saturating_add(check_task(task, &format!("tasks[{n}]"))?);
    }
    for (n, task) in tasks.iter().enumerate() {
        let mut seen = BTreeSet::new();
        for (m, need) in task.needs.iter().enumerate() {
            let field = format!("tasks[{n}].needs[{m}]");
            if !names.contains_key(need) && !known.contains(need) {
                let all = names.keys().map(|name| name.as_str());
                let near = nearest(need.as_str(), all.chain(known.iter().map(|t| t.as_str())));
                let refusal =
                    invalid(&field, format!("`{}` needs `{need}`, which is no task", task.name));
                return Err(match near {
                    Some(near) => refusal.hint(format!("did you mean `{near}`?")),
                    None => refusal,
                });
            }
            if !seen.insert(need) {
                return Err(invalid(&field, format!("`{}` needs `{need}` twice", task.name)));
            }
        }
    }
    find_cycle(tasks, &names)?;
    Ok(items)
}

/// Checks items that continue an array; says how many bytes they are.
pub fn check_items(items: &[Arc<str>], field: &str) -> Result<usize, Refusal> {
    let mut bytes = 0usize;
    for (n, item) in items.iter().enumerate() {
        if item.len() > MAX_ITEM {
            return Err(Refusal::new(
                code::TOO_LARGE,
                format!("item {n} has {} bytes, more than {MAX_ITEM}", item.len()),
            )
            .field(format!("{field}[{n}]"))
            .hint("items are names of things, not the things themselves"));
        }
        if item.contains('\0') {
            return Err(invalid(&format!("{field}[{n}]"), format!("item {n} has a NUL in it")));
        }
        bytes = bytes.saturating_add(item.len());
    }
    Ok(bytes)
}

/// The refusal of too many bytes of items.
pub fn too_many_items(bytes: usize) -> Refusal {
    Refusal::new(
        code::TOO_LARGE,
        format!("the items of this work have {bytes} bytes, more than {MAX_ITEMS}"),
    )
    .field("tasks")
}

/// The nearest of `names` to what was written, if one is near; a name that only lacks its unit
/// (`memory` for `memory_mib`) is.
pub fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = written.chars().count();
    let allowed = (length / 3).clamp(1, 4);
    let lacks_unit = |name: &str| {
        let rest = name.strip_prefix(written);
        length > 1 && rest.is_some_and(|rest| rest.starts_with('_'))
    };
    let distance = |name: &str| {
        // Also keeps a name of a megabyte from being compared with anything.
        let comparable = name.chars().count().abs_diff(length) <= allowed;
        match lacks_unit(name) {
            true => Some(1),
            false => comparable.then(|| strsim::damerau_levenshtein(written, name)),
        }
    };
    names
        .filter_map(|name| Some((distance(name)?, name)))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

fn invalid(field: &str, message: impl Into<String>) -> Refusal {
    Refusal::new(code::INVALID, message).field(field)
}

fn check_task(task: &Task, at: &str) -> Result<usize, Refusal> {
    check_run(&task.run, at)?;
    let items = match &task.array {
        None => 0,
        Some(array) => check_array(array, at)?,
    };
    if !task.inputs.is_empty() {
        return Err(Refusal::new(code::UNSUPPORTED, "`inputs` are not built yet")
            .field(format!("{at}.inputs"))
            .hint("read from a folder that the node has, or give `stdin`"));
    }
    check_outputs(task, at)?;
    check_resources(&task.resources, at)?;
    if task.retries > 10_000 {
        return Err(invalid(&format!("{at}.retries"), "`retries` is more than 10000"));
    }
    if task.timeout_s.is_some_and(|timeout| timeout.is_zero()) {
        return Err(invalid(&format!("{at}.timeout_s"), "`timeout_s` is 0")
            .hint("leave it out for no limit"));
    }
    for (n, name) in task.env_from_node.iter().enumerate() {
        check_env_name(name, &format!("{at}.env_from_node[{n}]"))?;
    }
    if task.output.limit_mib == 0 || task.output.limit_mib > 1 << 20 {
        return Err(invalid(
            &format!("{at}.output.limit_mib"),
            "`output.limit_mib` is not 1 to 1048576",
        ));
    }
    Ok(items)
}

fn check_run(run: &Run, at: &str) -> Result<(), Refusal> {
    let Run::Process(process) = run else { return Ok(()) };
    let field = format!("{at}.run.process.argv");
    match process.argv.first() {
        None => {
            return Err(invalid(&field, "`argv` is empty").hint("give the program first"));
        }
        Some(program) if program.is_empty() => {
            return Err(invalid(&format!("{field}[0]"), "the program's name is empty"));
        }
        Some(_) => {}
    }
    let mut bytes = 0usize;
    for (n, arg) in process.argv.iter().enumerate() {
        if arg.contains('\0') {
            return Err(invalid(&format!("{field}[{n}]"), format!("argument {n} has a NUL in it")));
        }
        bytes += arg.len() + 1;
    }
    for (name, value) in &process.env {
        let field = format!("{at}.run.process.env.{name}");
        check_env_name(name, &field)?;
        if value.contains('\0') {
            return Err(invalid(&field, format!("the value of `{name}` has a NUL in it")));
        }
        bytes += name.len() + value.len() + 2;
    }
    if bytes > MAX_ARGS {
        return Err(Refusal::new(
            code::TOO_LARGE,
            format!("arguments and environment have {bytes} bytes, more than {MAX_ARGS}"),
        )
        .field(field)
        .hint("give long input as `stdin`"));
    }
    if process.stdin.as_ref().is_some_and(|stdin| stdin.len() > MAX_STDIN) {
        return Err(Refusal::new(
            code::TOO_LARGE,
            format!("`stdin` is larger than {MAX_STDIN} bytes"),
        )
        .field(format!("{at}.run.process.stdin")));
    }
    Ok(())
}

fn check_env_name(name: &str, field: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.contains(['=', '\0']) || name.len() > 255 {
        return Err(invalid(field, format!("{name:?} cannot name an environment variable")));
    }
    Ok(())
}

fn check_array(array: &Array, at: &str) -> Result<usize, Refusal> {
    let field = format!("{at}.array");
    let items = match (&array.count, &array.items) {
        (Some(_), Some(_)) | (None, None) => {
            return Err(invalid(&field, "`array` has either `count` or `items`"));
        }
        (None, Some(items)) => check_items(items, &format!("{field}.items"))?,
        (Some(_), None) => 0,
    };
    if array.len() > MAX_INDICES {
        return Err(Refusal::new(
            code::TOO_LARGE,
            format!("an array of {} is larger than {MAX_INDICES}", array.len()),
        )
        .field(field)
        .hint("make each index do more"));
    }
    Ok(items)
}

fn check_outputs(task: &Task, at: &str) -> Result<(), Refusal> {
    let mut names = BTreeSet::new();
    for (n, output) in task.outputs.iter().enumerate() {
        let field = format!("{at}.outputs[{n}]");
        if output.name.is_empty() || output.name.len() > 255 || !names.insert(&output.name) {
            return Err(invalid(
                &format!("{field}.name"),
                format!("{:?} is empty, longer than 255 bytes or there twice", output.name),
            ));
        }
        if !stays_inside(&output.path) {
            return Err(invalid(
                &format!("{field}.path"),
                format!("{:?} is no path inside the scratch folder", output.path),
            )
            .hint("give a relative path without `..`"));
        }
        if let Some(items) = task.array.as_ref().and_then(|array| array.items.as_ref())
            && output.path.contains("{item}")
            && let Some((m, item)) = items
                .iter()
                .enumerate()
                .find(|(m, item)| !stays_inside(&fill(&output.path, *m as Index, Some(item))))
        {
            return Err(invalid(
                &format!("{at}.array.items[{m}]"),
                format!("the item {item:?} makes the output path leave the scratch folder"),
            ));
        }
    }
    Ok(())
}

/// Whether a path is relative, not empty and never climbs.
pub fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with('/')
        && !path.contains('\0')
        && path.split('/').all(|part| part != "..")
}

fn check_resources(resources: &Resources, at: &str) -> Result<(), Refusal> {
    let amounts = [
        ("memory_mib", resources.memory_mib),
        ("gpus", resources.gpus),
        ("vram_mib", resources.vram_mib),
        ("disk_mib", resources.disk_mib),
    ];
    for (name, amount) in amounts {
        if amount > ABSURD {
            return Err(invalid(
                &format!("{at}.resources.{name}"),
                format!("`{name}` is {amount}, which no machine has"),
            ));
        }
    }
    for (name, amount) in &resources.custom {
        let field = format!("{at}.resources.custom.{name}");
        if !crate::token::is_token(name) {
            return Err(invalid(&field, format!("{name:?} is no name of a resource")));
        }
        if *amount > ABSURD {
            return Err(invalid(&field, format!("`{name}` is {amount}, which no machine has")));
        }
    }
    Ok(())
}

/// Needs only point to tasks of the same list here: `known` tasks cannot need later ones.
fn find_cycle(tasks: &[Arc<Task>], names: &BTreeMap<&TaskName, usize>) -> Result<(), Refusal> {
    let mut waits: Vec<usize> = Vec::with_capacity(tasks.len());
    let mut unlocks: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    for (n, task) in tasks.iter().enumerate() {
        let inside: Vec<usize> = task.needs.iter().filter_map(|t| names.get(t).copied()).collect();
        waits.push(inside.len());
        for need in inside {
            unlocks[need].push(n);
        }
    }
    let mut free: Vec<usize> = (0..tasks.len()).filter(|&n| waits[n] == 0).collect();
    let mut done = 0;
    while let Some(n) = free.pop() {
        done += 1;
        for &next in &unlocks[n] {
            waits[next] -= 1;
            if waits[next] == 0 {
                free.push(next);
            }
        }
    }
    if done == tasks.len() {
        return Ok(());
    }
    // Walking against the arrows from a task that never became free must come round.
    let mut at = waits.iter().position(|&w| w > 0).expect("some task is not done");
    let mut path = Vec::new();
    let start = loop {
        if let Some(start) = path.iter().position(|&p| p == at) {
            break start;
        }
        path.push(at);
        at = *tasks[at]
            .needs
            .iter()
            .filter_map(|t| names.get(t))
            .find(|&&need| waits[need] > 0)
            .expect("a task that waits for ever needs another such");
    };
    let mut ring: Vec<&str> = path[start..].iter().map(|&n| tasks[n].name.as_str()).collect();
    ring.push(ring[0]);
    Err(invalid(
        &format!("tasks[{}].needs", path[start]),
        format!("the tasks need each other in a circle: {}", ring.join(" → ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<WorkSpec, Refusal> {
        let submit: Submit = serde_json::from_str(json).unwrap();
        let spec = normalise(submit)?;
        check(&spec)?;
        Ok(spec)
    }

    fn refused(json: &str, code: &str, field: &str) -> Refusal {
        let refusal = spec(json).unwrap_err();
        assert_eq!((&*refusal.code, refusal.field.as_deref()), (code, Some(field)), "{refusal:?}");
        refusal
    }

    #[test]
    fn the_short_form_is_a_work_with_one_task() {
        let short = spec(r#"{"argv":["uname","-a"],"retries":2}"#).unwrap();
        let long = spec(
            r#"{"tasks":[{"name":"main","run":{"process":{"argv":["uname","-a"]}},"retries":2}]}"#,
        )
        .unwrap();
        assert_eq!(short, long);
    }

    #[test]
    fn a_circle_is_named() {
        let refusal = refused(
            r#"{"tasks":[{"name":"z","needs":["c"],"run":{"echo":""}},
                {"name":"a","needs":["b"],"run":{"echo":""}},
                {"name":"b","needs":["c"],"run":{"echo":""}},
                {"name":"c","needs":["a"],"run":{"echo":""}}]}"#,
            code::INVALID,
            "tasks[3].needs",
        );
        assert!(refusal.message.contains("c → a → b → c"), "{refusal}");
    }

    #[test]
    fn a_need_that_is_no_task_gets_the_nearest_name() {
        let refusal = refused(
            r#"{"tasks":[{"name":"resize","run":{"echo":""}},
                {"name":"sheet","needs":["resise"],"run":{"echo":""}}]}"#,
            code::INVALID,
            "tasks[1].needs[0]",
        );
        assert_eq!(refusal.hint.as_deref(), Some("did you mean `resize`?"));
    }

    #[test]
    fn each_bad_field_is_named() {
        for (json, code, field) in [
            (r#"{"argv":[]}"#, code::INVALID, "tasks[0].run.process.argv"),
            (r#"{"argv":["a","b\u0000"]}"#, code::INVALID, "tasks[0].run.process.argv[1]"),
            (
                r#"{"argv":["a"],"array":{"count":1000000000000}}"#,
                code::TOO_LARGE,
                "tasks[0].array",
            ),
            (r#"{"argv":["a"],"array":{}}"#, code::INVALID, "tasks[0].array"),
            (r#"{"argv":["a"],"run":{"echo":""}}"#, code::INVALID, "argv"),
            (r#"{"argv":["a"],"tasks":[]}"#, code::INVALID, "tasks"),
            (r#"{"tasks":[]}"#, code::INVALID, "tasks"),
            (r#"{"argv":["a"],"priority":101}"#, code::INVALID, "priority"),
            (r#"{"argv":["a"],"name":"@last"}"#, code::INVALID, "name"),
            (r#"{"argv":["a"],"timeout_s":0}"#, code::INVALID, "tasks[0].timeout_s"),
            (r#"{"argv":["a"],"inputs":[1]}"#, code::UNSUPPORTED, "tasks[0].inputs"),
            (
                r#"{"argv":["a"],"outputs":[{"name":"o","path":"../o"}]}"#,
                code::INVALID,
                "tasks[0].outputs[0].path",
            ),
            (
                r#"{"argv":["a"],"array":{"items":["x","../y"]},"outputs":[{"name":"o","path":"{item}"}]}"#,
                code::INVALID,
                "tasks[0].array.items[1]",
            ),
            (
                r#"{"argv":["a"],"resources":{"memory_mib":18446744073709551615}}"#,
                code::INVALID,
                "tasks[0].resources.memory_mib",
            ),
            (
                r#"{"tasks":[{"name":"a","run":{"echo":""}},{"name":"a","run":{"echo":""}}]}"#,
                code::INVALID,
                "tasks[1].name",
            ),
        ] {
            refused(json, code, field);
        }
    }
}
