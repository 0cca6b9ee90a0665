//! Which streams and buckets a house has, and how they share the store.
//!
//! The manager makes and updates them at start; doing it twice changes nothing.

use crate::{connect::Bus, error::Error};
use async_nats::jetstream::{
    kv,
    stream::{Compression, Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use schemas::token::PoolName;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// How large the streams may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The journal of each pool.
    pub facts: u64,
    /// The output of jobs.
    pub output: u64,
    /// The inbox.
    pub inbox: u64,
    /// Each bucket.
    pub kv: u64,
    /// How long output is kept.
    pub output_max_age: Duration,
}

impl Shares {
    /// Shares out the store: output 2 GiB or 40 %, the smaller; facts a quarter; inbox and buckets
    /// 5 % each.
    pub fn of(store_bytes: u64) -> Self {
        Self {
            facts: store_bytes / 4,
            output: (store_bytes / 5 * 2).min(2 * GIB),
            inbox: store_bytes / 20,
            kv: store_bytes / 60,
            output_max_age: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// The stream of a pool's journal.
pub fn journal(pool: &PoolName) -> String {
    format!("lh-fact-{pool}")
}

/// The stream of all output.
pub const OUTPUT: &str = "lh-out";
/// The bucket of leases.
pub const LEASES: &str = "lh-lease";
/// The bucket of summaries, one key a work: `<owner>.<work>`.
pub const SUMMARIES: &str = "lh-work";
/// The bucket of nodes.
pub const NODES: &str = "lh-node";

impl Bus {
    /// Makes the streams and buckets of a house, or brings them up to date.
    pub async fn lay_streams(&self, pools: &[PoolName], shares: Shares) -> Result<(), Error> {
        for pool in pools {
            self.lay(Config {
                name: journal(pool),
                subjects: vec![format!("lh.fact.{pool}.>")],
                description: Some(format!("the journal of the pool {pool}")),
                max_bytes: signed(shares.facts),
                discard: DiscardPolicy::New,
                allow_direct: true,
                max_consumers: 64,
                ..Default::default()
            })
            .await?;
        }
        self.lay(Config {
            name: OUTPUT.to_owned(),
            subjects: vec!["lh.out.>".to_owned()],
            description: Some("what jobs write".to_owned()),
            max_bytes: signed(shares.output),
            max_age: shares.output_max_age,
            discard: DiscardPolicy::New,
            allow_direct: true,
            max_consumers: 64,
            compression: Some(Compression::S2),
            ..Default::default()
        })
        .await?;
        self.lay(Config {
            name: crate::inbox::STREAM.to_owned(),
            subjects: vec!["lh.inbox.*".to_owned()],
            description: Some("works submitted while no manager is up".to_owned()),
            max_bytes: signed(shares.inbox),
            max_messages: 100_000,
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            max_consumers: 1,
            ..Default::default()
        })
        .await?;
        for bucket in [LEASES, SUMMARIES, NODES] {
            self.jetstream()
                .create_or_update_key_value(kv::Config {
                    bucket: bucket.to_owned(),
                    history: 1,
                    max_bytes: signed(shares.kv),
                    limit_markers: Some(Duration::from_secs(60)),
                    ..Default::default()
                })
                .await
                .map_err(|error| Error::other(format!("making the bucket `{bucket}`"), error))?;
        }
        Ok(())
    }

    async fn lay(&self, config: Config) -> Result<(), Error> {
        let doing = format!("making the stream `{}`", config.name);
        let metadata = [("schema".to_owned(), schemas::SCHEMA.to_string())].into();
        let config = Config { storage: StorageType::File, num_replicas: 1, metadata, ..config };
        self.jetstream()
            .create_or_update_stream(config)
            .await
            .map(|_| ())
            .map_err(|error| Error::other(doing, error))
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
