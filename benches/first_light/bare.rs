//! The bare path: every hop that a work takes through a house, written straight on the client
//! library in one process, with nothing decided on the way. What a house costs beyond this is ours.
//!
//! request → `accepted` stored → read → fenced `assigned` stored → read → asked of the node →
//! reported → fenced `ended` stored → read → answered.

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, push},
        context::PublishAckFuture,
        message::PublishMessage,
        stream::Config,
    },
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use std::{collections::HashMap, sync::Arc};
use tokio::sync::Mutex;

/// As large as what a house says of an `echo`.
const BODY: usize = 200;

/// The bare path, ready to be asked on `bare.run`.
pub(crate) struct Bare {
    client: Client,
}

impl Bare {
    /// Lays the path.
    pub(crate) async fn lay(client: Client) -> anyhow::Result<Self> {
        let js = jetstream::new(client.clone());
        js.create_stream(Config {
            name: "bare".into(),
            subjects: vec!["bare.fact.>".into()],
            allow_direct: true,
            ..Default::default()
        })
        .await?;
        let epoch = js.publish("bare.fact.epoch", "1".into()).await?.await?.sequence;
        manager(&client, &js).await?;
        scheduler(&client, &js, epoch).await?;
        node(&client).await?;
        client.flush().await?;
        Ok(Self { client })
    }

    /// One work, from asking to the answer.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        self.client.request("bare.run", body("run")).await?;
        Ok(())
    }
}

fn body(what: &str) -> Bytes {
    let mut bytes = format!("{{\"what\":\"{what}\",\"pad\":\"").into_bytes();
    bytes.resize(BODY - 2, b'x');
    bytes.extend(b"\"}");
    bytes.into()
}

async fn tail(js: &jetstream::Context, client: &Client) -> anyhow::Result<push::Ordered> {
    let stream = js.get_stream("bare").await?;
    let consumer = stream
        .create_consumer(push::OrderedConfig {
            deliver_subject: client.new_inbox(),
            deliver_policy: DeliverPolicy::New,
            ..Default::default()
        })
        .await?;
    Ok(consumer.messages().await?)
}

/// Takes what is there, after waiting for the first.
async fn batch(tail: &mut push::Ordered) -> Vec<jetstream::Message> {
    let mut out = Vec::new();
    if let Some(Ok(first)) = tail.next().await {
        out.push(first);
    }
    while let Some(Some(Ok(next))) = tail.next().now_or_never() {
        out.push(next);
    }
    out
}

/// Stores `accepted` for each request, answers when it reads `ended`.
async fn manager(client: &Client, js: &jetstream::Context) -> anyhow::Result<()> {
    let mut asked = client.subscribe("bare.run").await?;
    let mut tail = tail(js, client).await?;
    let waiting: Arc<Mutex<HashMap<String, async_nats::Subject>>> = Arc::default();
    let (client, js, waits) = (client.clone(), js.clone(), waiting.clone());
    tokio::spawn(async move {
        let mut n = 0_u64;
        while let Some(request) = asked.next().await {
            n += 1;
            let Some(reply) = request.reply else { continue };
            waits.lock().await.insert(n.to_string(), reply);
            let message = PublishMessage::build()
                .payload(body("accepted"))
                .header("Nats-Expected-Last-Subject-Sequence", "0");
            let sent = js.send_publish(format!("bare.fact.{n}.accepted"), message).await;
            stored(sent);
        }
    });
    tokio::spawn(async move {
        loop {
            for message in batch(&mut tail).await {
                let mut tokens = message.subject.split('.').skip(2);
                let (Some(id), Some("ended")) = (tokens.next(), tokens.next()) else { continue };
                let reply = waiting.lock().await.remove(id);
                if let Some(reply) = reply {
                    let _ = client.publish(reply, body("answer")).await;
                }
            }
        }
    });
    Ok(())
}

/// Stores `assigned` for each `accepted`, asks the node when it reads it, stores `ended` for each
/// report and answers it when it reads that.
async fn scheduler(client: &Client, js: &jetstream::Context, epoch: u64) -> anyhow::Result<()> {
    let mut reports = client.subscribe("bare.report.*").await?;
    let mut tail = tail(js, client).await?;
    let waiting: Arc<Mutex<HashMap<String, async_nats::Subject>>> = Arc::default();
    let fence = move |what: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", epoch.to_string().as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", "bare.fact.epoch");
        PublishMessage::build().payload(body(what)).headers(headers)
    };
    let (writer, waits) = (js.clone(), waiting.clone());
    tokio::spawn(async move {
        while let Some(report) = reports.next().await {
            let Some(reply) = report.reply else { continue };
            let id = report.subject.rsplit('.').next().unwrap_or_default().to_owned();
            waits.lock().await.insert(id.clone(), reply);
            stored(writer.send_publish(format!("bare.fact.{id}.ended"), fence("ended")).await);
        }
    });
    let (client, js) = (client.clone(), js.clone());
    tokio::spawn(async move {
        loop {
            for message in batch(&mut tail).await {
                let mut tokens = message.subject.split('.').skip(2);
                let (Some(id), Some(kind)) = (tokens.next(), tokens.next()) else { continue };
                match kind {
                    "accepted" => stored(
                        js.send_publish(format!("bare.fact.{id}.assigned"), fence("assigned"))
                            .await,
                    ),
                    "assigned" => {
                        let asked = client.clone();
                        let subject = format!("bare.node.{id}");
                        tokio::spawn(async move { asked.request(subject, body("jobs")).await });
                    }
                    "ended" => {
                        let reply = waiting.lock().await.remove(id);
                        if let Some(reply) = reply {
                            let _ = client.publish(reply, body("stored")).await;
                        }
                    }
                    _ => {}
                }
            }
        }
    });
    Ok(())
}

/// Takes each job and reports it at once.
async fn node(client: &Client) -> anyhow::Result<()> {
    let mut jobs = client.subscribe("bare.node.*").await?;
    let client = client.clone();
    tokio::spawn(async move {
        while let Some(job) = jobs.next().await {
            let Some(reply) = job.reply else { continue };
            let _ = client.publish(reply, body("taken")).await;
            let id = job.subject.rsplit('.').next().unwrap_or_default().to_owned();
            let client = client.clone();
            tokio::spawn(async move {
                client.request(format!("bare.report.{id}"), body("report")).await
            });
        }
    });
    Ok(())
}

/// Nobody on this path waits for the bus's word but in what he reads.
fn stored<E>(sent: Result<PublishAckFuture, E>) {
    if let Ok(sent) = sent {
        tokio::spawn(async move { sent.await });
    }
}
