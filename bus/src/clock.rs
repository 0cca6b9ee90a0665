//! The only clock: everything else is told the time.

use schemas::time::{Millis, Now, Stamp};

/// The time now, on both clocks.
pub fn now() -> Now {
    Now { at: at(), wall: wall() }
}

/// A clock that only grows and, where the system has such, also counts while the machine sleeps.
pub fn at() -> Millis {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Millis(seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000)
}

/// What time it is in the world, as far as this machine knows.
pub fn wall() -> Stamp {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Stamp(seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_never_goes_back() {
        let first = super::at();
        assert!(super::at() >= first);
        assert!(super::wall().0 > 1_700_000_000_000);
    }
}
