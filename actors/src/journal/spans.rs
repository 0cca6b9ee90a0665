//! A map from indices to values that are alike over long runs: a million alike are one entry.

use schemas::indices::{Index, Indices};
use std::collections::BTreeMap;

/// A map from indices to values, kept as runs of equal neighbours.
#[derive(Clone, Debug)]
pub struct Spans<T> {
    /// First index of a run → its last index and the value of all between.
    runs: BTreeMap<Index, (Index, T)>,
}

impl<T> Default for Spans<T> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

impl<T: Clone + PartialEq> Spans<T> {
    /// Whether no index has a value.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many indices have a value.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|(a, (b, _))| u64::from(b - a) + 1).sum()
    }

    /// The value of an index.
    pub fn get(&self, index: Index) -> Option<&T> {
        let (_, (last, value)) = self.runs.range(..=index).next_back()?;
        (*last >= index).then_some(value)
    }

    /// Every run, ascending: first index, last index, value.
    pub fn runs(&self) -> impl Iterator<Item = (Index, Index, &T)> {
        self.runs.iter().map(|(&a, (b, value))| (a, *b, value))
    }

    /// The parts of runs that lie within `first..=last`, ascending.
    pub fn within(&self, first: Index, last: Index) -> impl Iterator<Item = (Index, Index, &T)> {
        let from = match self.runs.range(..=first).next_back() {
            Some((&a, (b, _))) if *b >= first => a,
            _ => first,
        };
        // A reversed range would panic in the map.
        self.runs
            .range(from..=last.max(from))
            .filter(move |(a, _)| **a <= last)
            .map(move |(&a, (b, value))| (a.max(first), (*b).min(last), value))
    }

    /// Gives every index of `first..=last` this value.
    pub fn set(&mut self, first: Index, last: Index, value: T) {
        if last < first {
            return;
        }
        self.remove(first, last);
        let (mut first, mut last) = (first, last);
        if let Some((&a, (b, before))) = self.runs.range(..first).next_back()
            && b.checked_add(1) == Some(first)
            && *before == value
        {
            first = a;
        }
        if let Some(next) = last.checked_add(1)
            && let Some((end, after)) = self.runs.get(&next)
            && *after == value
        {
            last = *end;
            self.runs.remove(&next);
        }
        self.runs.insert(first, (last, value));
    }

    /// Gives every index of a set this value.
    pub fn set_all(&mut self, indices: &Indices, value: &T) {
        for &(a, b) in indices.ranges() {
            self.set(a, b, value.clone());
        }
    }

    /// Takes the values of `first..=last` out and returns them.
    pub fn remove(&mut self, first: Index, last: Index) -> Vec<(Index, Index, T)> {
        self.remove_if(first, last, |_| true)
    }

    /// Takes the values of a set of indices out.
    pub fn remove_all(&mut self, indices: &Indices) {
        if self.runs.is_empty() {
            return;
        }
        for &(a, b) in indices.ranges() {
            self.remove(a, b);
        }
    }

    /// Takes those values of `first..=last` out that `fits`, and returns them.
    pub fn remove_if(
        &mut self,
        first: Index,
        last: Index,
        fits: impl Fn(&T) -> bool,
    ) -> Vec<(Index, Index, T)> {
        if last < first {
            return Vec::new();
        }
        let out: Vec<(Index, Index, T)> = self
            .within(first, last)
            .filter(|(_, _, value)| fits(value))
            .map(|(a, b, value)| (a, b, value.clone()))
            .collect();
        for (a, b, value) in &out {
            let (&start, _) = self.runs.range(..=*a).next_back().expect("a run begins there");
            let (end, _) = self.runs.remove(&start).expect("it was just found");
            if start < *a {
                self.runs.insert(start, (a - 1, value.clone()));
            }
            if end > *b {
                self.runs.insert(b + 1, (end, value.clone()));
            }
        }
        out
    }

    /// All indices that have a value.
    pub fn indices(&self) -> Indices {
        let mut out = Indices::new();
        for (a, b, _) in self.runs() {
            out.insert_span(a, b);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a plain map, over many random steps.
    #[test]
    fn it_is_a_map() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..400 {
            let (mut ours, mut plain) = (Spans::default(), BTreeMap::new());
            for _ in 0..40 {
                let (a, len, value) = (random.u32(0..50), random.u32(0..8), random.u8(0..3));
                match random.u8(0..3) {
                    0 => {
                        let out = ours.remove_if(a, a + len, |v| *v == value);
                        let out: Vec<u32> = out.iter().flat_map(|(a, b, _)| *a..=*b).collect();
                        let expected: Vec<u32> =
                            (a..=a + len).filter(|i| plain.get(i) == Some(&value)).collect();
                        assert_eq!(out, expected);
                        plain.retain(|i, v| !(a..=a + len).contains(i) || *v != value);
                    }
                    1 => {
                        ours.remove(a, a + len);
                        plain.retain(|i, _| !(a..=a + len).contains(i));
                    }
                    _ => {
                        ours.set(a, a + len, value);
                        plain.extend((a..=a + len).map(|i| (i, value)));
                    }
                }
                for i in 0..60 {
                    assert_eq!(ours.get(i), plain.get(&i), "{i} {ours:?}");
                }
                assert_eq!(ours.len(), plain.len() as u64);
                let runs: Vec<_> = ours.runs().map(|(a, b, v)| (a, b, *v)).collect();
                for pair in runs.windows(2) {
                    assert!(pair[0].1 + 1 < pair[1].0 || pair[0].2 != pair[1].2, "{ours:?}");
                }
            }
        }
    }
}
