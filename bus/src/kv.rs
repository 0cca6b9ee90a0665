//! Buckets of keys: leases, and one summary a work.
//!
//! Written by raw compare-and-set publishes, never by the library's helpers: its
//! `create_with_ttl` loses the TTL over an expired key, and its `update` knows none.

use crate::{
    connect::Bus,
    error::{Error, StoreError},
    log::{Expect, Log, Stored, Tail},
};
use async_nats::HeaderMap;
use bytes::Bytes;
use schemas::id::Seq;
use std::time::Duration;

/// A bucket with a history of one value a key.
#[derive(Clone, Debug)]
pub struct Kv {
    bucket: String,
    log: Log,
}

/// A key's last value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For the next compare-and-set.
    pub revision: Seq,
    /// `None` when it was removed or has expired.
    pub value: Option<Bytes>,
}

impl Bus {
    /// A bucket of the house, by its name. Nothing is asked yet.
    pub fn kv(&self, bucket: &str) -> Kv {
        Kv { bucket: bucket.to_owned(), log: self.log(format!("KV_{bucket}")) }
    }
}

impl Kv {
    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }

    /// A key's last value; a key that never was has the revision 0.
    pub async fn get(&self, key: &str) -> Result<Entry, Error> {
        let last = self.log.last(&self.subject(key)).await?;
        Ok(last.map_or(Entry { revision: 0, value: None }, entry))
    }

    /// Writes a key if its last revision is `expected`; with `ttl` (whole seconds, at least one)
    /// it expires by itself.
    pub async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Seq,
        ttl: Option<Duration>,
    ) -> Result<Seq, StoreError> {
        let mut headers = HeaderMap::new();
        if let Some(ttl) = ttl {
            headers.insert("Nats-TTL", ttl.as_secs().max(1).to_string().as_str());
        }
        let sent =
            self.log.send_with(&self.subject(key), value, &Expect::Last(expected), headers).await;
        sent.stored().await
    }

    /// Removes a key if its last revision is `expected`.
    pub async fn remove(&self, key: &str, expected: Seq) -> Result<Seq, StoreError> {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        let expect = Expect::Last(expected);
        self.log.send_with(&self.subject(key), Bytes::new(), &expect, headers).await.stored().await
    }

    /// Each change of a key, beginning with its last value. For managers and schedulers only.
    pub async fn watch(&self, key: &str) -> Result<Tail, Error> {
        self.log.tail(&self.subject(key), 1).await
    }
}

/// What a stored message says of its key.
pub fn entry(stored: Stored) -> Entry {
    Entry { revision: stored.seq, value: (!stored.removed).then_some(stored.payload) }
}
