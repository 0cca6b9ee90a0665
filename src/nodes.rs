//! `longhouse nodes`: the machines of the house.

use crate::{app::App, report::Report, style};
use bus::clock;
use comfy_table::{Cell, Color};
use schemas::{
    node::{NodeState, NodeView},
    request::{Nodes as Request, NodesReply},
    time::Stamp,
};
use std::fmt;

/// A clock that is off by more than this is worth a word.
pub(crate) const CLOCK_OFF_S: f64 = 5.0;

/// List the machines of the house
#[derive(Debug, clap::Args)]
pub(crate) struct Nodes {
    /// Also what each machine is: its system, processor and cards
    #[arg(short, long)]
    long: bool,
}

impl Nodes {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<Report> {
        let house = app.house().await?;
        let reply: NodesReply = house.sched("nodes", &Request::default()).await?;
        let table = Listed { reply: &reply, long: self.long, now: clock::wall() };
        Ok(Report::pair(table, &reply))
    }
}

struct Listed<'a> {
    reply: &'a NodesReply,
    long: bool,
    now: Stamp,
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodesReply { nodes, paused } = self.reply;
        if nodes.is_empty() {
            return f.write_str("no nodes; `longhouse worker` lends this machine\n");
        }
        let heads = ["NODE", "SITE", "STATE", "KIND", "CPUS", "MEMORY", "GPUS", "JOBS", "HEARD"];
        let mut table = style::table(&heads);
        for node in nodes {
            table.add_row(vec![
                Cell::new(&node.node),
                Cell::new(node.site.as_ref().map_or("–", |site| site.as_str())),
                state(node.state),
                Cell::new(&node.kind),
                style::number(format!("{}/{}", node.used.cpus, node.total.cpus)),
                style::number(memory(node.used.memory_mib, node.total.memory_mib)),
                style::number(format!("{}/{}", node.used.gpus, node.total.gpus)),
                style::number(node.jobs),
                Cell::new(style::moment(node.heard_at, self.now)),
            ]);
        }
        f.write_str(&style::lines(&table))?;
        for node in nodes {
            if let Some(why) = &node.why {
                writeln!(f, "{}: {why}", node.node)?;
            }
            if node.clock_ahead_s.abs() > CLOCK_OFF_S {
                writeln!(f, "{}", clock_sentence(node))?;
            }
            if self.long {
                long(node, f)?;
            }
        }
        if *paused {
            writeln!(f, "the pool is paused: nothing is placed")?;
        }
        Ok(())
    }
}

/// How far a node's clock is off, in words.
pub(crate) fn clock_sentence(node: &NodeView) -> String {
    let off = node.clock_ahead_s;
    let word = if off > 0.0 { "ahead" } else { "behind" };
    format!("{}: its clock is {:.1} s {word}", node.node, off.abs())
}

fn state(state: NodeState) -> Cell {
    let color = match state {
        NodeState::Ready => Color::Green,
        NodeState::Joining | NodeState::Drained | NodeState::Silent => Color::Yellow,
        NodeState::Lost => Color::Red,
        NodeState::Left => Color::DarkGrey,
    };
    Cell::new(state.as_str()).fg(color)
}

fn memory(used_mib: u64, total_mib: u64) -> String {
    let gib = |mib: u64| mib as f64 / 1024.0;
    format!("{:.1}/{:.1} GiB", gib(used_mib), gib(total_mib))
}

fn long(node: &NodeView, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let what = &node.inventory;
    writeln!(
        f,
        "{}: {} {}, {}, {}, {} MiB, longhouse {}",
        node.node,
        what.os,
        what.arch,
        what.cpu,
        style::count(what.cores, "core"),
        what.memory_mib,
        node.version
    )?;
    for card in &what.cards {
        writeln!(f, "{}: card {} {}, {} MiB", node.node, card.index, card.name, card.vram_mib)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_what_is_taken_of_what_it_lends() {
        let reply: NodesReply = serde_json::from_str(
            r#"{"nodes": [{"node": "m4", "pool": "main", "site": "home", "state": "silent",
                "why": "not heard for 12 s", "kind": "tensor",
                "instance": "0198f0c2-7b5e-4cc3-98c4-dc0c0c07398f",
                "total": {"cpus": 8, "memory_mib": 16384, "gpus": 1},
                "used": {"cpus": 1.5, "memory_mib": 512}, "jobs": 2,
                "inventory": {}, "heard_at": "2026-11-23T03:42:03.000Z",
                "clock_ahead_s": -7.25, "version": "0.1.0"}]}"#,
        )
        .unwrap();
        let text = Listed { reply: &reply, long: false, now: Stamp(0) }.to_string();
        let plain = anstream::adapter::strip_str(&text).to_string();
        for part in ["m4", "home", "silent", "tensor", "1.5/8", "0.5/16.0 GiB", "0/1"] {
            assert!(plain.contains(part), "{part} in {plain}");
        }
        assert!(plain.contains("m4: not heard for 12 s\n"), "{plain}");
        assert!(plain.contains("m4: its clock is 7.2 s behind\n"), "{plain}");
    }
}
