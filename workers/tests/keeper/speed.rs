//! How fast a keeper is, beside bare processes of the same machine in the same run. Nothing is asserted:
//! `cargo test -p workers --test keeper -- --ignored` prints it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use crate::desk::{Change, House, job};
use libtest_mimic::Trial;
use schemas::{amount::Cpus, amount::Room, indices::Indices, work::Run};
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Every measurement of this file.
pub(crate) fn all() -> Vec<Trial> {
    let trial = Trial::test("how_fast", || {
        how_fast();
        Ok(())
    });
    vec![trial.with_ignored_flag(true)]
}

const JOBS: u32 = 5000;

/// So many a second.
fn rate(count: u32, run: impl FnOnce()) -> f64 {
    let before = bus::clock::at();
    run();
    f64::from(count) / (bus::clock::at().since(before).max(1) as f64 / 1000.0)
}

/// Two threads that start `true` with two pipes and wait for it, as a keeper would do at best.
fn bare() {
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..JOBS / 2 {
                    let mut command = Command::new("/usr/bin/true");
                    command.env_clear().stdin(Stdio::null());
                    command.stdout(Stdio::piped()).stderr(Stdio::piped());
                    command.spawn().unwrap().wait_with_output().unwrap();
                }
            });
        }
    });
}

fn how_fast() {
    for _ in 0..3 {
        let bare = rate(JOBS, bare);
        let house = House::with(|hello| hello.lend.cpus = Cpus::new(4));
        let mut desk = house.attach();
        desk.ack_frames = true;
        let mut many = job(&["true"]);
        many.indices = Indices::first(JOBS);
        let jobs = rate(JOBS, || {
            desk.start(many);
            desk.until(|desk| desk.reports.len() == JOBS as usize);
        });
        let mut echo = job(&["x"]).spec(|spec| {
            (spec.run, spec.array) = (Run::Echo("{index}".to_owned().into()), true);
            spec.room = Room::default();
        });
        echo.indices = Indices::first(100_000);
        desk.reports.clear();
        let each = rate(100_000, || {
            desk.start(echo.clone());
            desk.until(|desk| desk.reports.len() == 100_000);
        });
        let mut uniform = echo.spec(|spec| spec.run = Run::Echo("same".to_owned().into()));
        uniform.work.0 = uuid::Uuid::now_v7();
        uniform.indices = Indices::first(1_000_000);
        desk.reports.clear();
        let same = rate(1_000_000, || {
            desk.start(uniform);
            desk.until(|desk| !desk.reports.is_empty());
        });
        let _ = writeln!(
            std::io::stdout(),
            "bare {bare:.0}/s, jobs {jobs:.0}/s ({:.0} %), echoes with an index {each:.0}/s, \
             all alike {same:.0}/s",
            jobs / bare * 100.0
        );
    }
}
