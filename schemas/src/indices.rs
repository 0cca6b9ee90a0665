//! Sets of indices of an array task, as ranges: a million indices are one pair of numbers.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{borrow::Cow, fmt};

/// One index of an array task; a task without `array` has the index 0 only.
pub type Index = u32;

/// A set of indices. Written as inclusive ranges, ascending and apart: `[[0,99],[101,101]]`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Indices {
    ranges: Vec<(Index, Index)>,
}

impl Indices {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// One index.
    pub fn one(index: Index) -> Self {
        Self { ranges: vec![(index, index)] }
    }

    /// `first` to `last`, both included; empty when `last < first`.
    pub fn span(first: Index, last: Index) -> Self {
        let mut out = Self::new();
        out.insert_span(first, last);
        out
    }

    /// The first `count` indices, from 0.
    pub fn first(count: u32) -> Self {
        match count.checked_sub(1) {
            Some(last) => Self::span(0, last),
            None => Self::new(),
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many indices are in it.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(a, b)| u64::from(b - a) + 1).sum()
    }

    /// The ranges, ascending, inclusive and apart.
    pub fn ranges(&self) -> &[(Index, Index)] {
        &self.ranges
    }

    /// The smallest index.
    pub fn min(&self) -> Option<Index> {
        self.ranges.first().map(|r| r.0)
    }

    /// The largest index.
    pub fn max(&self) -> Option<Index> {
        self.ranges.last().map(|r| r.1)
    }

    /// Whether `index` is in it.
    pub fn contains(&self, index: Index) -> bool {
        let at = self.ranges.partition_point(|r| r.1 < index);
        self.ranges.get(at).is_some_and(|r| r.0 <= index)
    }

    /// Every index, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Index> + '_ {
        self.ranges.iter().flat_map(|&(a, b)| a..=b)
    }

    /// Adds one index.
    pub fn insert(&mut self, index: Index) {
        self.insert_span(index, index);
    }

    /// Adds `first` to `last`, both included.
    pub fn insert_span(&mut self, first: Index, last: Index) {
        if last < first {
            return;
        }
        // The ranges that touch or overlap become one.
        let from = self.ranges.partition_point(|r| r.1.saturating_add(1) < first && r.1 < first);
        let to = self.ranges.partition_point(|r| r.0 <= last.saturating_add(1));
        if from >= to {
            self.ranges.insert(from, (first, last));
            return;
        }
        let merged = (first.min(self.ranges[from].0), last.max(self.ranges[to - 1].1));
        self.ranges[from] = merged;
        self.ranges.drain(from + 1..to);
    }

    /// Adds every index of `other`.
    pub fn insert_all(&mut self, other: &Indices) {
        for &(a, b) in &other.ranges {
            self.insert_span(a, b);
        }
    }

    /// Takes one index out; says whether it was there.
    pub fn remove(&mut self, index: Index) -> bool {
        let there = self.contains(index);
        self.remove_span(index, index);
        there
    }

    /// Takes `first` to `last` out.
    pub fn remove_span(&mut self, first: Index, last: Index) {
        if last < first {
            return;
        }
        let from = self.ranges.partition_point(|r| r.1 < first);
        let to = self.ranges.partition_point(|r| r.0 <= last);
        if from >= to {
            return;
        }
        let head = self.ranges[from];
        let tail = self.ranges[to - 1];
        let mut rest = Vec::with_capacity(2);
        if head.0 < first {
            rest.push((head.0, first - 1));
        }
        if tail.1 > last {
            rest.push((last + 1, tail.1));
        }
        self.ranges.splice(from..to, rest);
    }

    /// Takes every index of `other` out.
    pub fn remove_all(&mut self, other: &Indices) {
        for &(a, b) in &other.ranges {
            self.remove_span(a, b);
        }
    }

    /// What is in both.
    pub fn intersection(&self, other: &Indices) -> Indices {
        let (mut i, mut j, mut out) = (0, 0, Indices::new());
        while let (Some(&(a, b)), Some(&(c, d))) = (self.ranges.get(i), other.ranges.get(j)) {
            let (low, high) = (a.max(c), b.min(d));
            if low <= high {
                out.ranges.push((low, high));
            }
            if b < d {
                i += 1;
            } else {
                j += 1;
            }
        }
        out
    }

    /// What is in this one and not in `other`.
    pub fn difference(&self, other: &Indices) -> Indices {
        let mut out = self.clone();
        out.remove_all(other);
        out
    }

    /// Whether every index of `other` is in it.
    pub fn contains_all(&self, other: &Indices) -> bool {
        other.ranges.iter().all(|&(a, b)| {
            let at = self.ranges.partition_point(|r| r.1 < a);
            self.ranges.get(at).is_some_and(|r| r.0 <= a && b <= r.1)
        })
    }

    /// Takes the smallest `count` indices out and returns them.
    pub fn take(&mut self, count: u64) -> Indices {
        let mut out = Indices::new();
        let mut left = count;
        let mut whole = 0;
        for range in &mut self.ranges {
            let size = u64::from(range.1 - range.0) + 1;
            if size <= left {
                out.ranges.push(*range);
                left -= size;
                whole += 1;
                continue;
            }
            if left > 0 {
                let cut = range.0 + u32::try_from(left).expect("less than the size of a range");
                out.ranges.push((range.0, cut - 1));
                range.0 = cut;
            }
            break;
        }
        self.ranges.drain(..whole);
        out
    }
}

impl fmt::Display for Indices {
    /// `0-99,101`, shortened after eight ranges.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (a, b)) in self.ranges.iter().enumerate() {
            if n == 8 {
                return write!(f, ",… ({} in all)", self.len());
            }
            if n > 0 {
                f.write_str(",")?;
            }
            if a == b { write!(f, "{a}")? } else { write!(f, "{a}-{b}")? }
        }
        Ok(())
    }
}

impl fmt::Debug for Indices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl FromIterator<Index> for Indices {
    fn from_iter<T: IntoIterator<Item = Index>>(indices: T) -> Self {
        let mut out = Self::new();
        for index in indices {
            out.insert(index);
        }
        out
    }
}

impl Serialize for Indices {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(&self.ranges)
    }
}

impl<'de> Deserialize<'de> for Indices {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let ranges = Vec::<(Index, Index)>::deserialize(d)?;
        let mut last: Option<Index> = None;
        for &(a, b) in &ranges {
            let apart = last.is_none_or(|last| u64::from(a) > u64::from(last) + 1);
            if b < a || !apart {
                return Err(D::Error::custom(
                    "ranges of indices must be ascending, apart and not reversed",
                ));
            }
            last = Some(b);
        }
        Ok(Self { ranges })
    }
}

impl JsonSchema for Indices {
    fn schema_name() -> Cow<'static, str> {
        "Indices".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "inclusive ranges, ascending and apart",
            "type": "array",
            "items": {
                "type": "array",
                "items": { "type": "integer", "minimum": 0, "maximum": 4294967295u32 },
                "minItems": 2,
                "maxItems": 2
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Against a plain set, over many random steps.
    #[test]
    fn it_is_a_set() {
        let mut seed = 0x2545_F491_4F6C_DD1D_u64;
        let mut next = |n: u32| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % u64::from(n)) as u32
        };
        for _ in 0..300 {
            let (mut ours, mut plain) = (Indices::new(), BTreeSet::new());
            for _ in 0..60 {
                let (a, len) = (next(60), next(8));
                match next(4) {
                    0 => {
                        ours.remove_span(a, a + len);
                        plain.retain(|i| !(a..=a + len).contains(i));
                    }
                    1 => {
                        let other: Indices = (0..4).map(|_| next(70)).collect();
                        let both = ours.intersection(&other);
                        assert!(
                            both.iter().eq(plain.iter().copied().filter(|i| other.contains(*i)))
                        );
                        assert_eq!(
                            ours.contains_all(&other),
                            other.iter().all(|i| plain.contains(&i))
                        );
                    }
                    2 => {
                        let taken: Vec<_> = ours.take(u64::from(len)).iter().collect();
                        let expected: Vec<_> = plain.iter().copied().take(len as usize).collect();
                        assert_eq!(taken, expected);
                        plain.retain(|i| !expected.contains(i));
                    }
                    _ => {
                        ours.insert_span(a, a + len);
                        plain.extend(a..=a + len);
                    }
                }
                assert!(ours.iter().eq(plain.iter().copied()), "{ours:?} {plain:?}");
                assert_eq!(ours.len(), plain.len() as u64);
                let again: Indices =
                    serde_json::from_str(&serde_json::to_string(&ours).unwrap()).unwrap();
                assert_eq!(again, ours);
            }
        }
    }

    #[test]
    fn the_largest_index_does_not_overflow() {
        let mut all = Indices::span(u32::MAX - 1, u32::MAX);
        all.insert(u32::MAX);
        assert_eq!(all.len(), 2);
        all.remove_span(u32::MAX, u32::MAX);
        assert_eq!(all, Indices::one(u32::MAX - 1));
    }

    #[test]
    fn reversed_or_overlapping_ranges_are_refused() {
        for bad in ["[[2,1]]", "[[0,1],[1,2]]", "[[0,1],[2,3]]", "[[5,6],[0,1]]", "[[-1,0]]"] {
            assert!(serde_json::from_str::<Indices>(bad).is_err(), "{bad}");
        }
    }
}
