//! Real keepers with real processes, spoken to as a worker speaks to them. This binary is the keeper, too:
//! with `keeper` as its first argument it is one.

#[path = "keeper/desk.rs"]
mod desk;
#[path = "keeper/jobs.rs"]
mod jobs;
#[path = "keeper/lives.rs"]
mod lives;
#[path = "keeper/speed.rs"]
mod speed;

use std::{ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "keeper") {
        let rest: Vec<OsString> = args.collect();
        return ExitCode::from(u8::try_from(workers::keeper_main(&rest)).unwrap_or(1));
    }
    let args = libtest_mimic::Arguments::from_args();
    let trials = jobs::all().into_iter().chain(lives::all()).chain(speed::all()).collect();
    libtest_mimic::run(&args, trials).exit_code()
}
