//! What a node lends: what its owner says (`cpus=6,memory=24GiB,gpus=2,camera=1`), filled up with what the
//! machine has.

use schemas::{
    amount::{Cpus, Room},
    node::{Card, Inventory},
    token::is_token,
};
use std::{collections::BTreeMap, str::FromStr};

/// What the owner says; what he does not say is lent whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lend {
    /// Cores.
    pub cpus: Option<Cpus>,
    /// Memory.
    pub memory_mib: Option<u64>,
    /// Graphics cards; where the machine shows fewer, cards without a name stand for the rest.
    pub gpus: Option<u64>,
    /// Memory of each card that the machine does not show.
    pub vram_mib: Option<u64>,
    /// Scratch space.
    pub disk_mib: Option<u64>,
    /// Anything else that he counts.
    pub custom: BTreeMap<String, u64>,
}

/// What is said makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// Not `name=amount`.
    #[error("`{0}` is not a name, `=` and an amount, such as cpus=6,memory=24GiB,gpus=2")]
    NotAPair(String),
    /// The amount is none of its kind.
    #[error("`{name}={amount}`: {expected}")]
    Amount {
        /// Of what.
        name: String,
        /// What was written.
        amount: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The name is none.
    #[error("`{0}` is no name for something to lend{1}")]
    Name(String, String),
    /// Said twice.
    #[error("`{0}` is said twice")]
    Twice(String),
}

/// Most of anything that is believed.
const MOST: u64 = 1 << 40;
/// Most cards in one machine.
const MOST_CARDS: u64 = 256;

impl FromStr for Lend {
    type Err = LendError;

    fn from_str(text: &str) -> Result<Self, LendError> {
        let mut lend = Lend::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let pair = part.split_once('=');
            let (name, amount) = pair.ok_or_else(|| LendError::NotAPair(part.to_owned()))?;
            lend.set(name.trim(), amount.trim())?;
        }
        Ok(lend)
    }
}

impl Lend {
    fn set(&mut self, name: &str, amount: &str) -> Result<(), LendError> {
        let wrong = |expected: &'static str| LendError::Amount {
            name: name.to_owned(),
            amount: amount.to_owned(),
            expected,
        };
        let count = || {
            let count = amount.parse().ok().filter(|n| *n <= MOST);
            count.ok_or_else(|| wrong("a whole number is expected"))
        };
        let size =
            || mib(amount).ok_or_else(|| wrong("a size is expected, such as 24GiB or 512MiB"));
        let there = match name {
            "cpus" => {
                let cores: f64 = amount.parse().map_err(|_| wrong("a number is expected"))?;
                if !(0.0..=1e6).contains(&cores) {
                    return Err(wrong("0 to 1000000 cores are expected"));
                }
                self.cpus.replace(Cpus { milli: (cores * 1000.0).round() as u64 }).is_some()
            }
            "memory" => self.memory_mib.replace(size()?).is_some(),
            "disk" => self.disk_mib.replace(size()?).is_some(),
            "vram" => self.vram_mib.replace(size()?).is_some(),
            "gpus" => {
                let count = count()?;
                if count > MOST_CARDS {
                    return Err(wrong("at most 256 cards are expected"));
                }
                self.gpus.replace(count).is_some()
            }
            other => {
                let meant = match other {
                    "cpu" | "core" | "cores" => Some("cpus"),
                    "gpu" | "card" | "cards" => Some("gpus"),
                    "mem" | "ram" | "memory_mib" => Some("memory"),
                    "disk_mib" => Some("disk"),
                    "vram_mib" => Some("vram"),
                    _ => None,
                };
                if meant.is_some() || !is_token(other) {
                    let hint = meant.map_or(String::new(), |m| format!(" (did you mean `{m}`?)"));
                    return Err(LendError::Name(other.to_owned(), hint));
                }
                self.custom.insert(other.to_owned(), count()?).is_some()
            }
        };
        if there { Err(LendError::Twice(name.to_owned())) } else { Ok(()) }
    }

    /// What is lent of a machine: amounts, and the cards by number.
    pub fn of(&self, machine: &Inventory) -> (Room, Vec<Card>) {
        let shown = machine.cards.len() as u64;
        let gpus = self.gpus.unwrap_or(shown);
        let card = |index: u64| {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let nameless =
                Card { index, vram_mib: self.vram_mib.unwrap_or_default(), ..Card::default() };
            machine.cards.get(index as usize).cloned().unwrap_or(nameless)
        };
        let room = Room {
            cpus: self.cpus.unwrap_or(Cpus::new(machine.cores)),
            memory_mib: self.memory_mib.unwrap_or(machine.memory_mib),
            gpus,
            disk_mib: self.disk_mib.unwrap_or(machine.disk_free_mib),
            custom: self.custom.clone(),
        };
        (room, (0..gpus).map(card).collect())
    }
}

/// `24GiB`, `512M`, `2g`: binary units all; a number alone is MiB.
fn mib(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1.0,
        "g" | "gb" | "gib" => 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0,
        "k" | "kb" | "kib" => 1.0 / 1024.0,
        _ => return None,
    };
    let mib = (number * scale).round();
    (0.0..=MOST as f64).contains(&mib).then_some(mib as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_lent_whole() {
        let machine =
            Inventory { cores: 8, memory_mib: 16_000, disk_free_mib: 99, ..Inventory::default() };
        let lend: Lend = "cpus=2.5, memory=4GiB,camera=1".parse().unwrap();
        let (room, cards) = lend.of(&machine);
        assert_eq!(room.to_string(), "2.5 cpus, 4.0 GiB memory, 99 MiB disk, 1 camera");
        assert!(cards.is_empty());
        assert_eq!("".parse::<Lend>().unwrap().of(&machine).0.cpus, Cpus::new(8));
    }

    #[test]
    fn cards_that_no_driver_shows_have_numbers_but_no_names() {
        let named = Card { index: 0, name: "A".to_owned(), vram_mib: 8192, uuid: None };
        let machine = Inventory { cards: vec![named.clone()], ..Inventory::default() };
        let (room, cards) = "gpus=2,vram=24G".parse::<Lend>().unwrap().of(&machine);
        assert_eq!(room.gpus, 2);
        assert_eq!(cards, [named, Card { index: 1, vram_mib: 24_576, ..Card::default() }]);
        assert!("gpus=0".parse::<Lend>().unwrap().of(&machine).1.is_empty());
    }

    #[test]
    fn nonsense_is_named() {
        for (text, said) in [
            ("cpus", "`cpus` is not a name, `=` and an amount, such as cpus=6,memory=24GiB,gpus=2"),
            ("cpu=3", "`cpu` is no name for something to lend (did you mean `cpus`?)"),
            ("cpus=-1", "`cpus=-1`: 0 to 1000000 cores are expected"),
            ("memory=lots", "`memory=lots`: a size is expected, such as 24GiB or 512MiB"),
            ("gpus=1.5", "`gpus=1.5`: a whole number is expected"),
            ("cpus=1,cpus=2", "`cpus` is said twice"),
            ("Big Thing=1", "`Big Thing` is no name for something to lend"),
        ] {
            assert_eq!(text.parse::<Lend>().unwrap_err().to_string(), said);
        }
    }
}
