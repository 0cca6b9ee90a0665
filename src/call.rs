//! `longhouse call`: asks anything on the bus, for the curious.

use crate::{app::App, failure::Failure, parse, report::Report, terminal};
use anyhow::Context;
use futures::StreamExt;
use schemas::{catalog, codec::Encoding, time::Seconds};
use serde_json::Value;
use std::{io::Read, time::Duration};

/// Ask anything on the bus
///
/// Such as `longhouse call lh.work.list '{"limit": 3}'`. What may be asked where: `longhouse
/// schema`.
#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    /// Where
    subject: String,
    /// What, as JSON; - reads it from standard input
    #[arg(default_value = "{}", value_name = "JSON")]
    body: String,
    /// Print many answers, until an empty one
    #[arg(long)]
    many: bool,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    within: Seconds,
}

impl Call {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let mut body = self.body;
        if body == "-" {
            body.clear();
            std::io::stdin().read_to_string(&mut body).context("could not read standard input")?;
        }
        if let Err(error) = serde_json::from_str::<Value>(&body) {
            return Err(Failure::usage(format!("the body is no JSON: {error}"))
                .hint("write it as in `longhouse call lh.work.list '{\"limit\": 3}'`")
                .into());
        }
        let house = app.house().await?;
        let within = Duration::from_millis(self.within.ms);
        if !self.many {
            let asked = house.bus.ask_raw(&self.subject, Encoding::Json, body.into(), within);
            let answer: Value = asked.await?.into_answer(&self.subject)?;
            return Ok(Report::pair(serde_json::to_string_pretty(&answer)?, &answer));
        }
        let mut answers = house.bus.ask_many(&self.subject, Encoding::Json, body.into()).await?;
        loop {
            let next = tokio::time::timeout(within, answers.next()).await;
            let silence = || bus::Error::Silence {
                subject: self.subject.clone(),
                within_s: within.as_secs_f64(),
            };
            let Some(message) = next.map_err(|_| silence())? else { break };
            if message.payload.is_empty() && !message.nobody {
                break;
            }
            let (reply, encoding, payload) =
                (message.reply.clone(), message.encoding, message.payload.clone());
            let _: Value = message.into_answer(&self.subject)?;
            let shown = catalog::decode("", encoding, &payload);
            terminal::print(&format!("{shown}\n"))?;
            if let Some(reply) = reply {
                house.bus.publish(&reply, Encoding::Json, Vec::new().into()).await?;
            }
        }
        Ok(Report::nothing())
    }
}
