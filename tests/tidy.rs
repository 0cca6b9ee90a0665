//! Promises about the source itself: the arrows between rooms, what a core may know, what no file
//! may hold. A failure lists each broken promise with its place.

#![expect(clippy::unwrap_used, reason = "a test may stop at what should not be")]

#[path = "tidy/code.rs"]
mod code;

use code::{Code, Word};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A text file of the repository, by its path from the root.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Tests, simulated worlds, benches and examples: they may print, read the environment, know the
    /// bus's client.
    fn is_aside(&self) -> bool {
        let asides = ["tests", "sim", "benches", "examples"];
        let path = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        path.split('/').any(|part| asides.contains(&part))
    }

    /// Whether it lies in a folder.
    fn lies_in(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(&format!("{folder}/")))
    }

    /// What is compiled, without comments and the contents of strings.
    fn code(&self) -> Code {
        Code::of(&self.text)
    }
}

/// Every text file that is, or could be, committed.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored = fs::read_to_string(root.join(".gitignore")).unwrap();
    let ignored: Vec<PathBuf> =
        ignored.lines().filter_map(|line| line.strip_prefix('/')).map(|at| root.join(at)).collect();
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if entry.file_name() == ".git" || ignored.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(&path)
            {
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "src/main.rs"), "the walk found no source");
    files
}

fn rust() -> Vec<File> {
    files().into_iter().filter(File::is_rust).collect()
}

/// Fails with a readable list.
fn keep(promise: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{promise}; broken {}×:\n  {}\n", broken.len(), broken.join("\n  "));
}

/// The places in a file where `is_broken` says so of a word of its code.
fn places(file: &File, is_broken: impl Fn(&Code, usize, &Word) -> bool) -> Vec<String> {
    let code = file.code();
    let broken = code.words.iter().enumerate().filter(|(n, word)| is_broken(&code, *n, word));
    broken.map(|(_, word)| format!("{}:{}: {}", file.path, word.line, word.text)).collect()
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    let broken = rust()
        .iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| file.path.clone())
        .collect();
    keep("every file opens with `//!`: what it is for, in a sentence", broken);
}

#[test]
fn modules_are_named_by_their_file() {
    let broken = rust()
        .iter()
        .filter(|file| file.path.ends_with("/mod.rs") && !file.is_aside())
        .map(|file| file.path.clone())
        .collect();
    keep("`foo.rs` beside `foo/`, never `foo/mod.rs`", broken);
}

/// Each room with those that it may know.
const ARROWS: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("bus", &["schemas"]),
    ("actors", &["schemas", "bus"]),
    ("workers", &["schemas", "bus"]),
];

/// The names of what a manifest depends on, in any of its tables, with the table.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let mut found = Vec::new();
    let mut tables: Vec<(&str, &toml::Table)> = vec![("", &manifest)];
    while let Some((name, table)) = tables.pop() {
        for (key, value) in table {
            let Some(inner) = value.as_table() else { continue };
            if key.ends_with("dependencies") && name != "workspace" {
                found.extend(inner.iter().map(|(name, how)| {
                    let renamed = how.get("package").and_then(toml::Value::as_str);
                    (key.clone(), renamed.unwrap_or(name).to_owned())
                }));
            } else {
                tables.push((key, inner));
            }
        }
    }
    found
}

#[test]
fn the_arrows_between_rooms_point_one_way() {
    let rooms: Vec<&str> = ARROWS.iter().map(|(room, _)| *room).chain(["longhouse"]).collect();
    let mut broken = Vec::new();
    for file in files().iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let of = file.path.strip_suffix("/Cargo.toml").unwrap_or("longhouse");
        let allowed = ARROWS.iter().find(|(room, _)| *room == of).map(|(_, allowed)| *allowed);
        if allowed.is_none() && of != "longhouse" {
            broken.push(format!("{}: a room that has no arrows yet", file.path));
        }
        let known = dependencies(&file.text);
        assert!(!known.is_empty(), "{} was not understood", file.path);
        for (table, name) in known {
            // A room may ask itself for a feature that only its tests need.
            let is_itself = name == of && table == "dev-dependencies";
            let is_room = rooms.contains(&&*name) && !is_itself;
            if is_room && allowed.is_some_and(|allowed| !allowed.contains(&&*name)) {
                broken.push(format!("{of} depends on {name} ({table})"));
            }
            let may_know_the_client = of == "bus" || table == "dev-dependencies";
            if ["async-nats", "nkeys"].contains(&&*name) && !may_know_the_client {
                broken.push(format!("{of} depends on {name} ({table})"));
            }
        }
        if !file.text.contains("[lints]\nworkspace = true") {
            broken.push(format!("{}: the lints of the workspace are not taken over", file.path));
        }
    }
    keep("schemas ← bus ← {actors, workers} ← longhouse, and only bus knows the client", broken);
}

/// The client's crate is seen in `bus` only; the rooms that decide and do have no word for it.
fn broken_secrecy(file: &File) -> Vec<String> {
    if file.is_aside() || file.lies_in(&["bus"]) {
        return Vec::new();
    }
    let is_room = file.lies_in(&["schemas", "actors", "workers"]);
    places(file, |_, _, word| {
        let text = word.text.to_lowercase();
        ["async_nats", "nkeys"].contains(&&*text) || (is_room && text.contains("nats"))
    })
}

#[test]
fn only_bus_knows_what_carries_it() {
    keep(
        "no `async_nats` outside bus, and no name with `nats` in schemas, actors and workers",
        rust().iter().flat_map(broken_secrecy).collect(),
    );
}

#[test]
fn actors_and_workers_never_import_each_other() {
    let broken = rust().into_iter().flat_map(|file| {
        let other = match file.path.split('/').next() {
            Some("actors") => "workers",
            Some("workers") => "actors",
            _ => return Vec::new(),
        };
        places(&file, |code, n, word| word.text == other && code.is_followed_by(n, "::"))
    });
    keep("actors and workers meet on the bus only", broken.collect());
}

/// Whether a file decides, and so knows neither clock nor bus nor anything that waits.
fn is_pure(path: &str) -> bool {
    let in_folder = |folder: &str| path.starts_with(folder);
    path.ends_with("/core.rs")
        || path.contains("/core/")
        || in_folder("schemas/src/")
        || path == "actors/src/journal.rs"
        || in_folder("actors/src/journal/")
}

fn broken_purity(file: &File) -> Vec<String> {
    if !is_pure(&file.path) || file.is_aside() {
        return Vec::new();
    }
    let forbidden = ["async", "await", "tokio", "ractor", "Instant", "SystemTime", "async_nats"];
    places(file, |code, n, word| {
        forbidden.contains(&&*word.text)
            // A generator with a seed that was handed in is no chance.
            || (word.text == "fastrand" && code.words.get(n + 1).is_none_or(|w| w.text != "Rng"))
            || (word.text == "bus" && code.is_followed_by(n, "::"))
            || (["fs", "net", "process", "thread"].contains(&&*word.text)
                && n > 0
                && code.words[n - 1].text == "std"
                && code.is_followed_by(n - 1, "::"))
    })
}

#[test]
fn cores_know_no_clock_no_bus_and_do_not_wait() {
    let broken = rust().iter().flat_map(broken_purity).collect();
    keep(
        "what decides is `step(now, event) -> actions`: no async, no clock, no bus, no I/O",
        broken,
    );
}

fn broken_silence(file: &File) -> Vec<String> {
    if file.is_aside() || file.lies_in(&["src"]) {
        return Vec::new();
    }
    let prints = ["println", "eprintln", "print", "eprint", "dbg"];
    let reads = ["var", "var_os", "vars", "vars_os", "args", "args_os", "set_var", "remove_var"];
    places(file, |code, n, word| {
        (prints.contains(&&*word.text) && code.is_followed_by(n, "!"))
            || (reads.contains(&&*word.text)
                && n > 0
                && code.words[n - 1].text == "env"
                && code.is_followed_by(n - 1, "::"))
    })
}

#[test]
fn only_the_command_prints_and_reads_the_environment() {
    let broken = rust().iter().flat_map(broken_silence).collect();
    keep("only `src/` prints, parses arguments and reads the environment", broken);
}

fn unsafe_places(file: &File) -> Vec<String> {
    places(file, |_, _, word| word.text == "unsafe")
}

#[test]
fn unsafe_code_is_in_the_one_file_that_spawns() {
    let with: Vec<(String, Vec<String>)> = rust()
        .iter()
        .map(|file| (file.path.clone(), unsafe_places(file)))
        .filter(|(_, places)| !places.is_empty())
        .collect();
    let mut broken: Vec<String> = with
        .iter()
        .filter(|(path, _)| !path.starts_with("workers/src/"))
        .flat_map(|(_, places)| places.clone())
        .collect();
    if with.len() - broken.len().min(with.len()) > 1 {
        broken.extend(with.iter().map(|(path, _)| format!("{path}: one of several")));
    }
    keep("`unsafe` is allowed in one file of workers", broken);
}

#[test]
fn nothing_is_left_for_later() {
    let unfinished = ["todo", "unimplemented"];
    let mut broken: Vec<String> = rust()
        .iter()
        .flat_map(|file| {
            places(file, |code, n, word| {
                unfinished.contains(&&*word.text) && code.is_followed_by(n, "!")
            })
        })
        .collect();
    // In two pieces, so that this file keeps the promise.
    let notes =
        [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X:"), concat!("HA", "CK:")];
    broken.extend(lines_with(&files(), |line| notes.iter().any(|note| line.contains(note))));
    keep("nothing is left for later", broken);
}

/// The places of the lines of which something is true; the lock file is nobody's writing.
fn lines_with(files: &[File], is_broken: impl Fn(&str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for file in files.iter().filter(|file| !file.path.ends_with(".lock")) {
        for (n, line) in file.text.lines().enumerate().filter(|(_, line)| is_broken(line)) {
            let shown: String = line.trim().chars().take(100).collect();
            broken.push(format!("{}:{}: {shown}", file.path, n + 1));
        }
    }
    broken
}

/// Whether a line names a folder of the machine on which it happened to be written.
fn names_a_private_folder(line: &str) -> bool {
    [concat!("/wo", "rk/"), concat!("/ro", "ot/")].iter().any(|folder| {
        line.match_indices(folder).any(|(at, _)| {
            // `a/work/b` and `$HOME/work/` are parts of other paths.
            !line[..at].ends_with(|c: char| c.is_alphanumeric() || "-_./}>".contains(c))
        })
    })
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    keep("no private folder is named", lines_with(&files(), names_a_private_folder));
}

#[test]
fn one_crypto_provider_and_none_in_c_but_its_own() {
    let lock =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let banned = ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];
    let broken = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .filter(|name| banned.contains(name))
        .map(str::to_owned)
        .collect();
    assert!(packages.iter().any(|package| package["name"].as_str() == Some("ring")));
    keep("rustls with ring, nothing else", broken);
}

/// The checks above find what they look for: a check that cannot fail keeps nothing.
#[test]
fn a_broken_promise_is_found() {
    let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
    let sample = |path: &str| {
        file(
            path,
            "//! async tokio println!\nuse tokio::time;\nasync fn f() { println!(\"async {x}\"); }\n\
             fn g() { let _ = bus::clock::now(); std::env::var(\"X\"); std::fs::read(\"x\"); }\n\
             fn i() { fastrand::u64(..); fastrand::Rng::with_seed(7); }\n\
             fn h() { unsafe { async_nats::connect() } } /* unsafe */ // unsafe\n",
        )
    };
    let core = sample("actors/src/scheduler/core.rs");
    let lines = |broken: Vec<String>| -> Vec<String> {
        broken.iter().map(|place| place.rsplit(": ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(
        lines(broken_purity(&core)),
        ["tokio", "async", "bus", "fs", "fastrand", "async_nats"]
    );
    assert_eq!(lines(broken_silence(&core)), ["println", "var"]);
    assert_eq!(lines(broken_secrecy(&core)), ["async_nats"]);
    assert_eq!(unsafe_places(&core), ["actors/src/scheduler/core.rs:6: unsafe"]);
    assert!(broken_purity(&sample("actors/src/scheduler/shell.rs")).is_empty());
    assert!(broken_silence(&sample("src/main.rs")).is_empty());
    assert!(broken_secrecy(&sample("bus/src/connect.rs")).is_empty());

    let manifest = "[dependencies]\na.workspace = true\n[target.'cfg(unix)'.dev-dependencies]\n\
                    b = { package = \"c\", version = \"1\" }\n[workspace.dependencies]\nd = \"1\"\n";
    let mut names: Vec<String> = dependencies(manifest).into_iter().map(|(_, name)| name).collect();
    names.sort();
    assert_eq!(names, ["a", "c"]);

    let private = format!("cd {}", concat!("/wo", "rk/main"));
    assert!(names_a_private_folder(&private));
    assert!(!names_a_private_folder("lh.work/ and a/work/b and kv/lh-work/x"));
    assert_eq!(lines_with(&[file("a.md", &private)], names_a_private_folder).len(), 1);
}
