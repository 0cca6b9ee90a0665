//! A model of a node that answers echoes at once, as a real one does: asked, reported, answered.

use bus::{Bus, Message, clock};
use futures::StreamExt;
use schemas::{
    amount::{Cpus, Room},
    blob::Blob,
    codec::{self, Encoding},
    id::InstanceId,
    job::{
        Became, HeldAnswer, HeldRequest, JobBatch, JobRef, JobsAnswer, JobsRequest, Pair, Report,
        ReportAnswer, ReportEntry, StopAnswer,
    },
    node::{Beat, Digest, Inventory},
    outcome::{Ending, IndexState},
    subject,
    time::{Seconds, Stamp},
    token::{NodeName, PoolName},
    work::{Run, fill},
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

struct Echo {
    bus: Bus,
    node: NodeName,
    instance: InstanceId,
    highest: Pair,
}

/// Starts it; it lends four cores.
pub(crate) fn start(bus: Bus, node: NodeName) -> JoinHandle<()> {
    let instance = InstanceId(uuid::Uuid::from_u128(0xabc));
    tokio::spawn(Echo { bus, node, instance, highest: Pair::default() }.live())
}

impl Echo {
    async fn live(mut self) {
        let mut asked = self.bus.hear(&subject::node(&self.node, "*")).await.unwrap();
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                message = asked.next() => match message {
                    Some(message) => self.hear(&message).await,
                    None => return,
                },
                _ = interval.tick() => self.beat().await,
            }
        }
    }

    async fn beat(&self) {
        let beat = Beat {
            node: self.node.clone(),
            instance: self.instance,
            pool: PoolName::main(),
            site: None,
            at: clock::wall(),
            since: Stamp(1),
            total: Room { cpus: Cpus::new(4), memory_mib: 4096, ..Room::default() },
            used: Room::default(),
            inventory: Arc::new(Inventory::default()),
            digest: Digest::default(),
            highest: self.highest,
            closing: false,
            leaving: false,
            version: "0.1.0".to_owned(),
        };
        let body = serde_json::to_vec(&beat).unwrap();
        let _ = self.bus.publish(&subject::beat(&self.node), Encoding::Json, body.into()).await;
    }

    async fn hear(&mut self, message: &Message) {
        match message.subject.rsplit('.').next().unwrap() {
            "held" => {
                let request: HeldRequest = message.decode().unwrap();
                let highest = std::mem::replace(&mut self.highest, request.ask.pair());
                let (instance, jobs) = (self.instance, Vec::new());
                self.say(message, &HeldAnswer { instance, jobs, highest }).await;
            }
            "jobs" => {
                let request: JobsRequest = message.decode().unwrap();
                self.highest = request.ask.pair();
                self.say(message, &JobsAnswer::default()).await;
                let epoch = request.ask.epoch;
                let jobs = request.jobs.iter().flat_map(|batch| self.run(batch, epoch));
                self.report(jobs.collect());
            }
            _ => self.say(message, &StopAnswer {}).await,
        }
    }

    fn run(&self, batch: &JobBatch, epoch: u64) -> Vec<ReportEntry> {
        let Run::Echo(text) = &batch.spec.run else { return Vec::new() };
        let one = |index: u32| {
            let text = fill(&text.to_text(), index, None).into_owned();
            let mut ending = Ending::new(IndexState::Finished);
            ending.node = Some(self.node.clone());
            ending.stdout_bytes = text.len() as u64;
            ending.stdout = Blob::from(text);
            ReportEntry {
                owner: batch.owner.clone(),
                jobs: JobRef {
                    work: batch.work,
                    task: batch.task.clone(),
                    attempt: batch.attempt,
                    indices: schemas::indices::Indices::one(index),
                },
                epoch,
                instance: self.instance,
                became: Became::Ended(Box::new(ending)),
                ago_s: Seconds::default(),
            }
        };
        batch.indices.iter().map(one).collect()
    }

    async fn say(&self, to: &Message, answer: &impl serde::Serialize) {
        let body = codec::encode(Encoding::MsgPack, answer);
        if let Some(reply) = to.reply.as_deref() {
            let _ = self.bus.send(reply, None, Encoding::MsgPack, body.into()).await;
        }
    }

    /// Reports until it is answered.
    fn report(&self, entries: Vec<ReportEntry>) {
        if entries.is_empty() {
            return;
        }
        let (bus, at) = (self.bus.clone(), subject::report(&PoolName::main(), &self.node));
        tokio::spawn(async move {
            for entries in entries.chunks(1000) {
                let report = Report { entries: entries.to_vec(), failed: Vec::new() };
                while bus.ask::<ReportAnswer>(&at, &report, Duration::from_secs(5)).await.is_err() {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
}
