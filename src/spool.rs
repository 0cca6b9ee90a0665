//! What `map` must remember of a list that may have millions of items, on disk: the items, and
//! ends that wait for their turn. The files have no name and go with the process.

use std::{
    collections::BTreeMap,
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

/// Things that wait for their turn, by index.
#[derive(Debug)]
pub(crate) struct Shelf {
    file: File,
    end: u64,
    places: BTreeMap<u32, (u64, usize)>,
}

impl Shelf {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, end: 0, places: BTreeMap::new() })
    }

    /// Puts something there.
    pub(crate) fn put(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.places.insert(index, (self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Takes something away, if it is there.
    pub(crate) fn take(&mut self, index: u32) -> io::Result<Option<Vec<u8>>> {
        let Some((start, len)) = self.places.remove(&index) else { return Ok(None) };
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, start)?;
        if self.places.is_empty() {
            self.file.set_len(0)?;
            self.end = 0;
        }
        Ok(Some(bytes))
    }

    /// The smallest index that is there.
    pub(crate) fn first(&self) -> Option<u32> {
        self.places.keys().next().copied()
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
    fn a_shelf_gives_back_what_was_put_there_and_its_space() {
        let mut shelf = Shelf::new().unwrap();
        shelf.put(7, b"seven").unwrap();
        shelf.put(3, b"three").unwrap();
        assert_eq!(shelf.first(), Some(3));
        assert_eq!(shelf.take(7).unwrap().as_deref(), Some(&b"seven"[..]));
        assert_eq!(shelf.take(7).unwrap(), None);
        assert_eq!(shelf.take(3).unwrap().as_deref(), Some(&b"three"[..]));
        assert_eq!(shelf.end, 0);
        shelf.put(9, b"nine").unwrap();
        assert_eq!(shelf.take(9).unwrap().as_deref(), Some(&b"nine"[..]));
    }
}
