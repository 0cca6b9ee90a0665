//! What `map` must remember of a list that may have millions of items, on disk: the items, and
//! output that waits for its turn. The files have no name and go with the process.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    sync::Arc,
};

/// The items of a list by their index.
#[derive(Debug)]
pub(crate) struct Items {
    text: File,
    /// Where each item ends in `text`, 8 bytes each.
    ends: File,
    count: u64,
    bytes: u64,
}

impl Items {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { text: tempfile::tempfile()?, ends: tempfile::tempfile()?, count: 0, bytes: 0 })
    }

    /// Adds items behind the last.
    pub(crate) fn push_all(&mut self, items: &[Arc<str>]) -> io::Result<()> {
        let mut text = Vec::new();
        let mut ends = Vec::with_capacity(items.len() * 8);
        for item in items {
            text.extend_from_slice(item.as_bytes());
            self.bytes += item.len() as u64;
            ends.extend_from_slice(&self.bytes.to_le_bytes());
        }
        self.text.write_all(&text)?;
        self.ends.write_all(&ends)?;
        self.count += items.len() as u64;
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.count
    }

    /// One item.
    pub(crate) fn get(&self, index: u32) -> io::Result<String> {
        let index = u64::from(index);
        let end = |index: u64| -> io::Result<u64> {
            let mut bytes = [0; 8];
            self.ends.read_exact_at(&mut bytes, index * 8)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let start = if index == 0 { 0 } else { end(index - 1)? };
        let mut text = vec![0; usize::try_from(end(index)? - start).unwrap_or(usize::MAX)];
        self.text.read_exact_at(&mut text, start)?;
        String::from_utf8(text).map_err(io::Error::other)
    }
}

/// Bytes that wait, in memory as long as there are few, else on disk.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    end: u64,
    on_disk: u64,
    in_memory: usize,
    most_in_memory: usize,
}

/// Some of those bytes, in order.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Memory(Vec<u8>),
    Disk { start: u64, len: usize },
}

impl Spool {
    pub(crate) fn new(most_in_memory: usize) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, end: 0, on_disk: 0, in_memory: 0, most_in_memory })
    }

    /// Adds bytes behind others.
    pub(crate) fn add(&mut self, to: &mut Waiting, bytes: &[u8]) -> io::Result<()> {
        if self.in_memory + bytes.len() <= self.most_in_memory {
            self.in_memory += bytes.len();
            match to.parts.last_mut() {
                Some(Part::Memory(last)) => last.extend_from_slice(bytes),
                _ => to.parts.push(Part::Memory(bytes.to_vec())),
            }
            return Ok(());
        }
        self.file.write_all_at(bytes, self.end)?;
        to.parts.push(Part::Disk { start: self.end, len: bytes.len() });
        self.end += bytes.len() as u64;
        self.on_disk += bytes.len() as u64;
        Ok(())
    }

    /// Gives the bytes back, a piece at a time.
    pub(crate) fn take<E: From<io::Error>>(
        &mut self,
        waiting: Waiting,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for part in waiting.parts {
            match part {
                Part::Memory(bytes) => {
                    self.in_memory -= bytes.len();
                    each(&bytes)?;
                }
                Part::Disk { start, len } => {
                    let mut bytes = vec![0; len];
                    self.file.read_exact_at(&mut bytes, start)?;
                    self.on_disk -= len as u64;
                    each(&bytes)?;
                }
            }
        }
        if self.on_disk == 0 && self.end > 0 {
            self.file.set_len(0)?;
            self.end = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_by_their_index_also_empty_and_wide_ones() {
        let mut items = Items::new().unwrap();
        items.push_all(&["a".into(), "".into()]).unwrap();
        items.push_all(&["größer".into()]).unwrap();
        assert_eq!(items.len(), 3);
        let all: Vec<_> = (0..3).map(|index| items.get(index).unwrap()).collect();
        assert_eq!(all, ["a", "", "größer"]);
        assert!(items.get(3).is_err());
    }

    #[test]
    fn what_does_not_fit_into_memory_waits_on_disk_and_comes_back_in_order() {
        let mut spool = Spool::new(6).unwrap();
        let (mut one, mut two) = (Waiting::default(), Waiting::default());
        spool.add(&mut one, b"abc").unwrap();
        spool.add(&mut two, b"123").unwrap();
        spool.add(&mut one, b"def").unwrap();
        spool.add(&mut two, b"456").unwrap();
        assert_eq!((spool.in_memory, spool.on_disk), (6, 6));
        let mut all = |waiting: Waiting| {
            let mut out = Vec::new();
            spool
                .take(waiting, |bytes| {
                    out.extend_from_slice(bytes);
                    io::Result::Ok(())
                })
                .unwrap();
            out
        };
        assert_eq!(all(two), b"123456");
        assert_eq!(all(one), b"abcdef");
        assert_eq!((spool.in_memory, spool.on_disk, spool.end), (0, 0, 0));
    }
}
