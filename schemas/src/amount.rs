//! Amounts of a machine: what a task needs, what a node has.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Processor cores, kept in thousandths, written as a number (`2`, `0.5`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus {
    /// The same in thousandths of a core.
    pub milli: u64,
}

impl Cpus {
    /// More cores than any machine has.
    pub const MAX: Cpus = Cpus { milli: 1_000_000_000 };

    /// So many whole cores.
    pub const fn new(cores: u64) -> Self {
        Self { milli: cores * 1000 }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.milli as f64 / 1000.0)
    }
}

impl fmt::Debug for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.milli.is_multiple_of(1000) {
            s.serialize_u64(self.milli / 1000)
        } else {
            s.serialize_f64(self.milli as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let cores = f64::deserialize(d)?;
        if !(0.0..=1e6).contains(&cores) {
            return Err(serde::de::Error::custom(format_args!(
                "{cores} is not a number of cores (0 to 1000000)"
            )));
        }
        Ok(Self { milli: (cores * 1000.0).round() as u64 })
    }
}

impl JsonSchema for Cpus {
    fn schema_name() -> Cow<'static, str> {
        "Cpus".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": 1_000_000 })
    }
}

/// An amount of everything that is counted on a node: what it lends, what is taken of it, what one
/// job takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Room {
    /// Processor cores.
    pub cpus: Cpus,
    /// Memory.
    pub memory_mib: u64,
    /// Graphics cards, whole ones.
    #[serde(skip_serializing_if = "is_zero")]
    pub gpus: u64,
    /// Scratch space on disk.
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_mib: u64,
    /// Anything the owner counts himself: licences, cameras, drives.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, u64>,
}

/// For `skip_serializing_if`.
pub(crate) fn is_zero<T: Default + PartialEq>(n: &T) -> bool {
    *n == T::default()
}

impl Room {
    /// Whether `need` fits into this.
    pub fn holds(&self, need: &Room) -> bool {
        self.times(need, 1) == 1
    }

    /// How many of `need` fit into this, at most `most`.
    pub fn times(&self, need: &Room, most: u64) -> u64 {
        let fit = |have: u64, need: u64| have.checked_div(need).unwrap_or(u64::MAX);
        let mut times = most
            .min(fit(self.cpus.milli, need.cpus.milli))
            .min(fit(self.memory_mib, need.memory_mib))
            .min(fit(self.gpus, need.gpus))
            .min(fit(self.disk_mib, need.disk_mib));
        for (name, &amount) in &need.custom {
            times = times.min(fit(self.custom.get(name).copied().unwrap_or(0), amount));
        }
        times
    }

    /// Adds `count` times `need`.
    pub fn add(&mut self, need: &Room, count: u64) {
        self.cpus.milli = self.cpus.milli.saturating_add(need.cpus.milli.saturating_mul(count));
        self.memory_mib = self.memory_mib.saturating_add(need.memory_mib.saturating_mul(count));
        self.gpus = self.gpus.saturating_add(need.gpus.saturating_mul(count));
        self.disk_mib = self.disk_mib.saturating_add(need.disk_mib.saturating_mul(count));
        for (name, &amount) in &need.custom {
            let slot = self.custom.entry(name.clone()).or_default();
            *slot = slot.saturating_add(amount.saturating_mul(count));
        }
    }

    /// Takes `count` times `need` away; what is not there stays at zero.
    pub fn sub(&mut self, need: &Room, count: u64) {
        self.cpus.milli = self.cpus.milli.saturating_sub(need.cpus.milli.saturating_mul(count));
        self.memory_mib = self.memory_mib.saturating_sub(need.memory_mib.saturating_mul(count));
        self.gpus = self.gpus.saturating_sub(need.gpus.saturating_mul(count));
        self.disk_mib = self.disk_mib.saturating_sub(need.disk_mib.saturating_mul(count));
        for (name, &amount) in &need.custom {
            if let Some(slot) = self.custom.get_mut(name) {
                *slot = slot.saturating_sub(amount.saturating_mul(count));
            }
        }
    }

    /// This without `taken`.
    pub fn minus(&self, taken: &Room) -> Room {
        let mut out = self.clone();
        out.sub(taken, 1);
        out
    }

    /// What is missing here for `need`: the difference, and nothing of what there is enough of.
    pub fn gap(&self, need: &Room) -> Room {
        let mut gap = need.minus(self);
        gap.custom.retain(|_, amount| *amount > 0);
        gap
    }

    /// What is missing here for `need`, in words (`2 cpus, 512 MiB memory`); empty when it fits.
    pub fn short_of(&self, need: &Room) -> String {
        self.gap(need).words().join(", ")
    }

    /// How far this is from holding `need`, for comparing nodes: how many kinds are lacking, then
    /// the largest part of what is needed that is lacking, in millionths. Zero when it fits.
    pub fn distance(&self, need: &Room) -> (usize, u64) {
        let gap = self.gap(need);
        let mut parts = vec![
            (gap.cpus.milli, need.cpus.milli),
            (gap.memory_mib, need.memory_mib),
            (gap.gpus, need.gpus),
            (gap.disk_mib, need.disk_mib),
        ];
        parts.extend(gap.custom.iter().map(|(name, gap)| (*gap, need.custom[name])));
        parts.retain(|(gap, _)| *gap > 0);
        let part =
            |(gap, need): &(u64, u64)| (u128::from(*gap) * 1_000_000 / u128::from(*need)) as u64;
        (parts.len(), parts.iter().map(part).max().unwrap_or(0))
    }

    /// Each amount that is not zero, in words.
    fn words(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.cpus > Cpus::default() {
            let unit = if self.cpus == Cpus::new(1) { "cpu" } else { "cpus" };
            out.push(format!("{} {unit}", self.cpus));
        }
        if self.memory_mib > 0 {
            out.push(format!("{} memory", mib(self.memory_mib)));
        }
        if self.gpus > 0 {
            let unit = if self.gpus == 1 { "gpu" } else { "gpus" };
            out.push(format!("{} {unit}", self.gpus));
        }
        if self.disk_mib > 0 {
            out.push(format!("{} disk", mib(self.disk_mib)));
        }
        let custom = self.custom.iter().filter(|(_, amount)| **amount > 0);
        out.extend(custom.map(|(name, amount)| format!("{amount} {name}")));
        out
    }
}

/// `512 MiB`, and above 1024 of them `15.9 GiB`.
fn mib(mib: u64) -> String {
    match mib {
        ..=1024 => format!("{mib} MiB"),
        _ => {
            // Whole tenths are cut, not rounded: a node must not seem to have what it lacks.
            let tenths = u128::from(mib) * 10 / 1024;
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        }
    }
}

impl fmt::Display for Room {
    /// `2 cpus, 512 MiB memory, 1 gpu`; `0 cpus` when there is nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = self.words();
        if self.cpus == Cpus::default() {
            words.insert(0, "0 cpus".to_owned());
        }
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_nothing_fits_as_often_as_asked() {
        assert_eq!(Room::default().times(&Room::default(), 7), 7);
    }

    #[test]
    fn the_scarcest_amount_decides() {
        let node = Room { cpus: Cpus::new(8), memory_mib: 1000, ..Room::default() };
        let need = Room { cpus: Cpus { milli: 500 }, memory_mib: 300, ..Room::default() };
        assert_eq!(node.times(&need, 100), 3);
        let camera = Room { custom: [("camera".to_owned(), 1)].into(), ..Room::default() };
        assert_eq!(node.times(&camera, 100), 0);
        assert_eq!(node.short_of(&camera), "1 camera");
    }
    #[test]
    fn one_is_said_as_one_and_much_memory_in_gib() {
        let room = |cpus, memory_mib, gpus| Room { cpus, memory_mib, gpus, ..Room::default() };
        for (room, said) in [
            (room(Cpus::new(1), 512, 1), "1 cpu, 512 MiB memory, 1 gpu"),
            (room(Cpus::new(2), 1024, 2), "2 cpus, 1024 MiB memory, 2 gpus"),
            (room(Cpus { milli: 500 }, 1_048_473, 0), "0.5 cpus, 1023.8 GiB memory"),
            (Room { disk_mib: 1536, ..Room::default() }, "0 cpus, 1.5 GiB disk"),
        ] {
            assert_eq!(room.to_string(), said);
        }
        let need = room(Cpus::new(3), 2048, 3);
        let short = room(Cpus::new(2), 4096, 2).short_of(&need);
        assert_eq!(short, "1 cpu, 1 gpu");
        assert_eq!(need.short_of(&need), "");
    }

    #[test]
    fn fewer_kinds_are_nearer_and_then_the_smaller_part() {
        let room = |cpus, gpus| Room { cpus: Cpus::new(cpus), gpus, ..Room::default() };
        let need = room(8, 3);
        assert_eq!(room(8, 3).distance(&need), (0, 0));
        assert!(room(8, 2).distance(&need) < room(8, 0).distance(&need));
        assert!(room(8, 0).distance(&need) < room(7, 2).distance(&need));
        assert_eq!(room(4, 3).distance(&need), (1, 500_000));
    }
}
