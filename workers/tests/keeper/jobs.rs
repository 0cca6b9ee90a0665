//! What jobs are promised.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use crate::desk::{Change, House, job, sh};
use libtest_mimic::Trial;
use schemas::outcome::IndexState;

/// Every test of this file.
pub(crate) fn all() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { $name(); Ok(()) })),*]
        };
    }
    trials![a_job_runs_and_is_reported_with_what_it_wrote]
}

fn a_job_runs_and_is_reported_with_what_it_wrote() {
    let house = House::new();
    let mut desk = house.attach();

    let ending = desk.run(sh("printf 'out\\0put'; echo err >&2; exit 3"));

    assert_eq!(ending.state, IndexState::Failed);
    assert_eq!(ending.exit_code, Some(3));
    assert_eq!(&ending.stdout.0[..], b"out\0put");
    assert_eq!((&ending.stderr.0[..], ending.stderr_bytes), (&b"err\n"[..], 4));
    assert_eq!(desk.run(job(&["true"])).state, IndexState::Finished);
    assert!(desk.frames.is_empty(), "few bytes are told by the outcome");
}
