//! How fast a follower is served: a window for who acknowledges, a steady rate for who never did.

use schemas::time::Millis;
use std::collections::VecDeque;

/// So much may be unacknowledged.
pub(crate) const WINDOW: usize = 256 * 1024;
/// Who never acknowledged gets so much a second.
const RATE: u64 = 512 * 1024;
/// So many replies are remembered for who has not acknowledged yet.
const REMEMBERED: usize = 4096;

/// What one follower was sent and has read.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    acknowledges: bool,
    sent: VecDeque<(u64, usize)>,
    unacknowledged: usize,
    /// Bytes above the steady rate, and when that was true.
    level: u64,
    at: Millis,
}

/// Why the next reply must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until something is acknowledged.
    Acknowledgement,
    /// So many milliseconds.
    Ms(u64),
}

impl Pace {
    /// Whether a reply of so many bytes may go out now.
    pub(crate) fn may_send(&mut self, now: Millis, bytes: usize) -> Result<(), Wait> {
        if self.acknowledges {
            let fits = self.unacknowledged == 0 || self.unacknowledged + bytes <= WINDOW;
            return if fits { Ok(()) } else { Err(Wait::Acknowledgement) };
        }
        self.drain(now);
        let after = self.level + bytes as u64;
        if self.level == 0 || after <= WINDOW as u64 {
            return Ok(());
        }
        let above = after.saturating_sub(WINDOW as u64).min(self.level);
        Err(Wait::Ms((above * 1000).div_ceil(RATE).max(1)))
    }

    /// Reply number `n` went out.
    pub(crate) fn sent(&mut self, now: Millis, n: u64, bytes: usize) {
        self.drain(now);
        self.level += bytes as u64;
        self.unacknowledged += bytes;
        self.sent.push_back((n, bytes));
        if !self.acknowledges
            && self.sent.len() > REMEMBERED
            && let Some((_, bytes)) = self.sent.pop_front()
        {
            self.unacknowledged -= bytes;
        }
    }

    /// Everything up to reply number `n` was read. A number that was never sent changes nothing.
    pub(crate) fn acknowledged(&mut self, n: u64) -> bool {
        if self.sent.back().is_none_or(|(last, _)| *last < n) {
            return false;
        }
        self.acknowledges = true;
        while let Some(&(first, bytes)) = self.sent.front()
            && first <= n
        {
            self.unacknowledged -= bytes;
            self.sent.pop_front();
        }
        true
    }

    fn drain(&mut self, now: Millis) {
        let passed = now.since(self.at);
        self.at = self.at.max(now);
        self.level = self.level.saturating_sub(passed.saturating_mul(RATE) / 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_acknowledges_has_a_window_and_never_more_in_flight() {
        let mut pace = Pace::default();
        let now = Millis(1);
        assert_eq!(pace.may_send(now, 1000), Ok(()));
        pace.sent(now, 1, 1000);
        assert!(pace.acknowledged(1));
        let mut n = 1;
        while pace.may_send(now, 10_000).is_ok() {
            n += 1;
            pace.sent(now, n, 10_000);
        }
        assert_eq!(n, 1 + WINDOW as u64 / 10_000);
        assert_eq!(pace.may_send(now, 10_000), Err(Wait::Acknowledgement));
        assert!(pace.acknowledged(n - 1));
        assert_eq!(pace.may_send(now, 10_000), Ok(()));
    }

    #[test]
    fn a_reply_larger_than_the_window_goes_out_alone() {
        let mut pace = Pace::default();
        pace.sent(Millis(1), 1, 10);
        pace.acknowledged(1);
        assert_eq!(pace.may_send(Millis(1), 2 * WINDOW), Ok(()));
        pace.sent(Millis(1), 2, 2 * WINDOW);
        assert_eq!(pace.may_send(Millis(1), 1), Err(Wait::Acknowledgement));
    }

    #[test]
    fn who_never_acknowledges_gets_half_a_mebibyte_a_second() {
        let mut pace = Pace::default();
        let (mut now, mut sent, mut n) = (Millis(1000), 0_u64, 0);
        while now < Millis(11_000) {
            match pace.may_send(now, 16 * 1024) {
                Ok(()) => {
                    n += 1;
                    sent += 16 * 1024;
                    pace.sent(now, n, 16 * 1024);
                }
                Err(Wait::Ms(ms)) => now = now + ms,
                Err(wait) => panic!("{wait:?}"),
            }
        }
        let expected = 10 * RATE;
        assert!(sent.abs_diff(expected) <= 2 * WINDOW as u64, "{sent} {expected}");
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_nothing() {
        let mut pace = Pace::default();
        assert!(!pace.acknowledged(7));
        pace.sent(Millis(1), 1, 10);
        assert!(!pace.acknowledged(7));
        assert!(pace.acknowledged(1));
    }
}
