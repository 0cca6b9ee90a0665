//! Which output goes when its stream is nearly full: that of works which ended long ago, of the owner
//! who holds most, so that nobody's output drives out a smaller one's.

use schemas::{id::WorkId, time::Stamp, token::OwnerName};
use std::collections::BTreeMap;

/// How full the stream is when something must go, and how full it may stay, in percent.
const FULL: u64 = 90;
const AFTER: u64 = 75;

/// How much of a work's output there is.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// Whose.
    pub owner: OwnerName,
    /// Which work.
    pub work: WorkId,
    /// How many messages.
    pub messages: u64,
    /// When it ended; `None` while it runs.
    pub ended_at: Option<Stamp>,
}

/// Whether something must go.
pub(crate) fn is_full(bytes: u64, max_bytes: u64) -> bool {
    max_bytes > 0 && bytes / FULL >= max_bytes / 100
}

/// Chooses what goes. Works that ended after `until` stay.
pub(crate) fn choose(kept: &[Kept], until: Stamp) -> Vec<(OwnerName, WorkId)> {
    let total: u64 = kept.iter().map(|kept| kept.messages).sum();
    let goal = total * (FULL - AFTER) / FULL;
    let mut holds: BTreeMap<&OwnerName, u64> = BTreeMap::new();
    let mut may_go: BTreeMap<&OwnerName, Vec<(Stamp, WorkId, u64)>> = BTreeMap::new();
    for kept in kept {
        *holds.entry(&kept.owner).or_default() += kept.messages;
        if let Some(ended_at) = kept.ended_at.filter(|at| *at <= until) {
            may_go.entry(&kept.owner).or_default().push((ended_at, kept.work, kept.messages));
        }
    }
    for works in may_go.values_mut() {
        works.sort_unstable_by(|a, b| b.cmp(a));
    }
    let (mut gone, mut freed) = (Vec::new(), 0);
    while freed < goal {
        let most = may_go
            .iter_mut()
            .filter(|(_, works)| !works.is_empty())
            .max_by_key(|(owner, _)| holds.get(*owner).copied().unwrap_or(0));
        let Some((owner, works)) = most else { break };
        let Some((_, work, messages)) = works.pop() else { break };
        freed += messages;
        if let Some(holds) = holds.get_mut(*owner) {
            *holds = holds.saturating_sub(messages);
        }
        gone.push(((*owner).clone(), work));
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn kept(owner: &str, work: u128, messages: u64, ended_at: Option<u64>) -> Kept {
        Kept {
            owner: owner.parse().unwrap(),
            work: WorkId(Uuid::from_u128(work)),
            messages,
            ended_at: ended_at.map(Stamp),
        }
    }

    fn gone(kept: &[Kept]) -> Vec<u128> {
        choose(kept, Stamp(100)).iter().map(|(_, work)| work.0.as_u128()).collect()
    }

    #[test]
    fn the_oldest_of_who_holds_most_goes_first() {
        let all = [
            kept("anna", 1, 10, Some(1)),
            kept("bob", 2, 40, Some(5)),
            kept("bob", 3, 20, Some(3)),
            kept("bob", 4, 30, Some(9)),
        ];
        assert_eq!(gone(&all), [3]);
    }

    #[test]
    fn what_runs_or_has_just_ended_stays() {
        let all = [
            kept("bob", 1, 90, None),
            kept("bob", 2, 90, Some(101)),
            kept("anna", 3, 1, Some(100)),
            kept("anna", 4, 1, None),
        ];
        assert_eq!(gone(&all), [3]);
        assert!(gone(&[]).is_empty());
    }

    #[test]
    fn nine_tenths_are_full() {
        assert!(is_full(91_000, 100_000));
        assert!(!is_full(89_000, 100_000));
        assert!(!is_full(1 << 40, 0), "a stream without a limit");
    }
}
