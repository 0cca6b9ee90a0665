//! The command where there is no house: help, usage, exit codes, settings, readers that go away.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Output, Stdio},
};

const LONGHOUSE: &str = env!("CARGO_BIN_EXE_longhouse");

/// The command with an empty environment, and a folder in which there is no house.
fn longhouse(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(LONGHOUSE);
    command
        .env_clear()
        .env("HOME", dir)
        .env("LONGHOUSE_DIR", dir.join("house"))
        .args(args)
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } = longhouse(dir.path(), args).output().unwrap();
    assert!(!dir.path().join("house").exists(), "a client must not make a folder");
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_command_explains_itself() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    let listed = help.split("Commands:").nth(1).unwrap();
    let commands: Vec<&str> = listed
        .lines()
        .map_while(|line| if line == "Options:" { None } else { Some(line) })
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .collect();
    for wanted in ["up", "down", "worker", "run", "map", "submit", "ls", "show", "wait", "cancel"] {
        assert!(commands.contains(&wanted), "{wanted} in {commands:?}");
    }
    assert!(!help.contains("bus-shim") && !help.contains("keeper"), "{help}");
    for command in commands {
        let (code, help, stderr) = run(&[command, "--help"]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{command}");
        assert!(help.contains("Usage: longhouse"), "{command}: {help}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    for args in [
        &["run"][..],
        &["nonsense"],
        &["run", "--memory", "512", "--", "true"],
        &["run", "--timeout", "soon", "--", "true"],
        &["ls", "--state", "broken"],
        &["schema", "work.sumbit"],
        &["drain", "No Node"],
        &["logs", ""],
        &["run", "--name", "", "--", "true"],
        &["submit", "there-is-no-such-file.toml"],
        &["--url", "foo bar", "ls"],
    ] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(!stderr.is_empty(), "{args:?}");
    }
    assert!(run(&["run", "--memory", "512", "--", "true"]).2.contains("512M"));
    assert!(run(&["schema", "work.sumbit"]).2.contains("did you mean `work.submit`?"));
}

#[test]
fn credentials_that_are_missing_or_broken_end_with_2_and_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.creds");
    std::fs::write(&broken, "no credentials").unwrap();
    for file in [&broken, &dir.path().join("missing.creds")] {
        let args = ["--url", "nats://127.0.0.1:1", "--creds", file.to_str().unwrap(), "ls"];
        let (code, _, stderr) = run(&args);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("\nhint: ") && stderr.contains("--creds FILE"), "{stderr}");
    }
}

#[test]
fn a_program_gets_every_error_as_one_json_object() {
    for (args, word, code) in [
        (&["ls", "--json"][..], "no_bus", 120),
        (&["submit", "nothing.toml", "--json"], "usage", 2),
        (&["--json", "nonsense"], "usage", 2),
        (&["--json", "ls", "--state", "broken"], "usage", 2),
    ] {
        let (ended, stdout, stderr) = run(args);
        assert_eq!((ended, stdout.as_str()), (Some(code), ""), "{args:?}: {stderr}");
        let said: serde_json::Value = serde_json::from_str(&stderr).unwrap();
        assert_eq!(said["error"]["code"], word, "{said}");
        assert!(!said["error"]["message"].as_str().unwrap().is_empty(), "{said}");
        assert!(said["error"].as_object().unwrap().contains_key("hint"), "{said}");
    }
    // What stands behind the dashes is the job's own.
    assert!(run(&["nonsense", "--", "--json"]).2.starts_with("error: "));
}

#[test]
fn without_a_house_every_client_ends_with_120_and_says_how_to_raise_one() {
    for args in [
        &["ls"][..],
        &["run", "--", "true"],
        &["show", "x"],
        &["nodes"],
        &["env"],
        &["logs"],
        &["watch"],
        &["call", "lh.work.list"],
    ] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (Some(120), ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("longhouse: there is no house in "), "{args:?}: {stderr}");
        assert!(stderr.contains("\nhint: `longhouse up`"), "{args:?}: {stderr}");
    }
    // Port 1 of this machine: nobody listens there.
    let (code, _, stderr) = run(&["--url", "nats://127.0.0.1:1", "ls"]);
    assert_eq!(code, Some(120), "{stderr}");
    assert!(stderr.contains("nats://127.0.0.1:1"), "{stderr}");
}

#[test]
fn a_work_that_is_written_wrongly_is_refused_here_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("work.toml");
    std::fs::write(&file, "name = 'x'\n[[tasks]]\nname = 'a'\nretrys = 2\n").unwrap();
    let ran = longhouse(dir.path(), &["submit", file.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(stderr.contains("work.toml, line 4: there is no field `retrys`"), "{stderr}");
    assert!(stderr.contains("hint: did you mean `retries`?"), "{stderr}");
}

#[test]
fn an_input_that_is_too_large_is_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = longhouse(dir.path(), &["run", "-i", "--", "cat"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It stops reading behind the limit, so that this ends early.
    let _ = child.stdin.take().unwrap().write_all(&vec![b'x'; 600 * 1024]);
    let ran = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("512 KiB"), "{stderr}");
}

#[test]
fn settings_say_where_they_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let house = dir.path().join("house");
    std::fs::create_dir(&house).unwrap();
    std::fs::write(house.join("config.toml"), "pool = 'tensor'\n").unwrap();
    let ran = longhouse(dir.path(), &["--url", "nats://flag:1", "config", "--json"])
        .env("LONGHOUSE_CREDS", "/env.creds")
        .output()
        .unwrap();
    let said: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(said["pool"]["value"], "tensor");
    assert!(said["pool"]["from"].as_str().unwrap().ends_with("config.toml"));
    assert_eq!(said["url"]["from"], "--url");
    assert_eq!(said["creds"]["from"], "LONGHOUSE_CREDS");
    assert_eq!(said["caller"]["from"], "default");

    std::fs::write(house.join("config.toml"), "poool = 'tensor'\n").unwrap();
    let ran = longhouse(dir.path(), &["ls"]).output().unwrap();
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(stderr.contains("`poool`") && stderr.contains("did you mean `pool`?"), "{stderr}");
}

#[test]
fn who_stops_reading_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    // Shut down and not only closed: a copy in a child of another test would keep a pipe open.
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.shutdown(std::net::Shutdown::Read).unwrap();
    let ran = longhouse(dir.path(), &["schema"])
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    assert_eq!(ran.status.code(), Some(141));
}

#[test]
fn nothing_is_coloured_where_nobody_looks_unless_it_is_asked_for() {
    let (_, plain, _) = run(&["schema"]);
    assert!(!plain.contains('\x1b'));
    let (_, coloured, _) = run(&["--color", "always", "schema"]);
    assert!(coloured.contains('\x1b'));
}

#[test]
fn each_shell_gets_a_script_that_asks_this_program() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&["completion", shell]);
        assert_eq!(code, Some(0), "{shell}");
        assert!(script.contains("COMPLETE"), "{shell}: {script}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = longhouse(dir.path(), &["--", "longhouse", "und"])
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "1")
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_COMPLETE_SPACE", "true")
        .env("_CLAP_IFS", "\n")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let words = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(words.map_while(Result::ok).collect::<Vec<_>>(), ["undrain"]);
    assert!(child.wait().unwrap().success());
}
