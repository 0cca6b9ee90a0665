//! Which work is meant, and who may see it.

use super::{Core, Pool};
use schemas::{
    error::{Refusal, code},
    id::WorkId,
    token::{CallerName, OwnerName, PoolName},
    work::check::nearest,
};
use uuid::Uuid;

/// Shortest beginning of an id that names a work.
const SHORTEST: usize = 4;
/// So many names are compared with one that is unknown.
const NEAR_NAMES: usize = 200;

/// Whether a caller may see and change what is an owner's.
pub(super) fn may(caller: &CallerName, owner: &OwnerName) -> bool {
    *caller == CallerName::owner() || OwnerName::of(caller) == *owner
}

impl Core {
    /// The pool that knows a work (or refused one).
    pub(super) fn pool_of(&self, work: WorkId) -> Option<(&PoolName, &Pool)> {
        self.pools
            .iter()
            .find(|(_, pool)| pool.fold.work(work).is_some())
            .or_else(|| self.pools.iter().find(|(_, pool)| pool.fold.refused(work).is_some()))
    }

    fn owner_of(&self, work: WorkId) -> Option<&OwnerName> {
        let (_, pool) = self.pool_of(work)?;
        match pool.fold.work(work) {
            Some(work) => Some(&work.owner),
            None => pool.fold.refused(work).map(|refused| &refused.owner),
        }
    }

    fn sees(&self, caller: &CallerName, work: WorkId) -> bool {
        self.owner_of(work).is_some_and(|owner| may(caller, owner))
    }

    /// Finds the work that a caller means: an id, his newest (`@last`), a name (the newest of
    /// several), or a beginning of an id that fits one only.
    pub(super) fn resolve(&self, caller: &CallerName, text: &str) -> Result<WorkId, Refusal> {
        if text.is_empty() {
            return Err(Refusal::new(code::INVALID, "`work` is empty")
                .field("work")
                .hint("give an id, the beginning of one, a name, or `@last`"));
        }
        if let Ok(id) = text.parse::<WorkId>() {
            return if self.sees(caller, id) { Ok(id) } else { Err(self.unknown(caller, text)) };
        }
        if text == "@last" {
            let own = OwnerName::of(caller);
            let newest = self
                .pools
                .values()
                .filter_map(|pool| pool.fold.of_owner(&own).next_back())
                .filter_map(|(_, work)| Some((self.submitted_at(work)?, work)))
                .max();
            return newest.map(|(_, work)| work).ok_or_else(|| {
                Refusal::new(code::UNKNOWN_WORK, format!("{caller} has submitted no work yet"))
                    .field("work")
            });
        }
        let named = self
            .pools
            .values()
            .flat_map(|pool| {
                let owners = pool.fold.owners().filter(|owner| may(caller, owner));
                owners.filter_map(|owner| pool.fold.named(owner, text).next_back())
            })
            .filter_map(|work| Some((self.submitted_at(work)?, work)))
            .max();
        if let Some((_, work)) = named {
            return Ok(work);
        }
        self.beginning(caller, text)
    }

    fn beginning(&self, caller: &CallerName, text: &str) -> Result<WorkId, Refusal> {
        let Some((first, last)) = span(text) else { return Err(self.unknown(caller, text)) };
        let mut fit = self
            .pools
            .values()
            .flat_map(|pool| pool.fold.ids(first, last))
            .filter(|work| self.sees(caller, *work));
        match (fit.next(), fit.next()) {
            (None, _) => Err(self.unknown(caller, text)),
            (Some(work), None) => Ok(work),
            (Some(a), Some(b)) => {
                let more = if fit.next().is_some() { ", …" } else { "" };
                Err(Refusal::new(code::AMBIGUOUS_WORK, format!("several ids begin with `{text}`"))
                    .field("work")
                    .hint(format!("more of the id, please: {a}, {b}{more}")))
            }
        }
    }

    fn submitted_at(&self, work: WorkId) -> Option<schemas::time::Stamp> {
        let (_, pool) = self.pool_of(work)?;
        match pool.fold.work(work) {
            Some(work) => Some(work.at),
            None => pool.fold.refused(work).map(|refused| refused.at),
        }
    }

    fn unknown(&self, caller: &CallerName, text: &str) -> Refusal {
        let shown: String = text.chars().take(80).collect();
        let refusal =
            Refusal::new(code::UNKNOWN_WORK, format!("there is no work `{shown}`")).field("work");
        let own = OwnerName::of(caller);
        let names: Vec<&str> = self
            .pools
            .values()
            .flat_map(|pool| {
                let newest = pool.fold.of_owner(&own).rev().take(NEAR_NAMES);
                newest.filter_map(|(_, work)| Some(pool.fold.work(work)?.spec.name.as_str()))
            })
            .filter(|name| !name.is_empty())
            .collect();
        match nearest(&shown, names.into_iter()) {
            Some(near) => refusal.hint(format!("did you mean `{near}`?")),
            None if is_too_short(text) => refusal.hint(format!(
                "give at least {SHORTEST} characters of an id; `list` shows the works there are"
            )),
            None => refusal.hint("`list` shows the works there are"),
        }
    }
}

/// From which id to which id the ids are that begin with a text.
fn span(text: &str) -> Option<(WorkId, WorkId)> {
    let hyphens = [8, 13, 18, 23];
    let shaped = text.bytes().enumerate().all(|(n, byte)| match byte {
        b'-' => hyphens.contains(&n),
        byte => !hyphens.contains(&n) && matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    });
    if !(SHORTEST..36).contains(&text.len()) || !shaped {
        return None;
    }
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let fill = |with: char| {
        let mut all = digits.clone();
        all.extend(std::iter::repeat_n(with, 32 - digits.len()));
        Uuid::try_parse(&all).ok().map(WorkId)
    };
    Some((fill('0')?, fill('f')?))
}

/// Whether a text would be the beginning of an id if it were longer.
fn is_too_short(text: &str) -> bool {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex && (1..SHORTEST).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_of_an_id_is_a_span_of_ids() {
        let (first, last) = span("0198f0c2-7b").unwrap();
        assert_eq!(first.to_string(), "0198f0c2-7b00-0000-0000-000000000000");
        assert_eq!(last.to_string(), "0198f0c2-7bff-ffff-ffff-ffffffffffff");
        for bad in ["019", "0198F0c2", "0198f-0c2", "0198f0c27", "", "thumbnails", "-198"] {
            assert!(span(bad).is_none(), "{bad}");
        }
    }
}
