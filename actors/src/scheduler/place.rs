//! On which node a job fits, and whether it could ever fit on one.

use schemas::{
    amount::Room,
    error::{Refusal, code},
    node::Beat,
    token::{NodeName, SiteName},
    work::{Task, Where, WorkSpec, check::nearest},
};

/// What a node lends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// Which LAN it is in.
    pub site: Option<SiteName>,
    /// What it lends.
    pub total: Room,
    /// The memory of each of its cards, as far as known.
    pub cards_mib: Vec<u64>,
}

impl Offer {
    /// What a beat says.
    pub fn of(beat: &Beat) -> Self {
        Self {
            site: beat.site.clone(),
            total: beat.total.clone(),
            cards_mib: beat.inventory.cards.iter().map(|card| card.vram_mib).collect(),
        }
    }
}

/// What a job needs of a node, and where it may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What it takes.
    pub need: Room,
    /// Memory that each of its cards must have.
    pub vram_mib: u64,
    /// Where it may run.
    pub place: Where,
}

impl Shape {
    /// What one job of a task needs.
    pub fn of(task: &Task) -> Self {
        Self { need: task.room(), vram_mib: task.resources.vram_mib, place: task.place.clone() }
    }

    /// Whether a node with this name could run it when it has nothing else to do; else what is
    /// missing, in words.
    pub fn fits(&self, node: &NodeName, offer: &Offer) -> Result<(), String> {
        if let Some(nodes) = &self.place.node
            && !nodes.as_slice().contains(node)
        {
            return Err("is not the node that is asked for".to_owned());
        }
        if let Some(sites) = &self.place.site
            && !offer.site.as_ref().is_some_and(|site| sites.as_slice().contains(site))
        {
            return Err(match &offer.site {
                Some(site) => format!("is at the site {site}"),
                None => "names no site".to_owned(),
            });
        }
        let short = offer.total.short_of(&self.need);
        if !short.is_empty() {
            return Err(format!("lacks {short}"));
        }
        if self.vram_mib > 0 {
            let large = offer.cards_mib.iter().filter(|mib| **mib >= self.vram_mib).count() as u64;
            if large < self.need.gpus.max(1) {
                let most = offer.cards_mib.iter().max().copied().unwrap_or(0);
                let cards = if large == 1 { "card" } else { "cards" };
                return Err(format!(
                    "has {large} {cards} with {} MiB (the largest has {most} MiB)",
                    self.vram_mib
                ));
            }
        }
        Ok(())
    }

    /// How far a node is from being able to run it.
    fn distance(&self, node: &NodeName, offer: &Offer) -> Distance {
        let elsewhere = self.place.node.as_ref().is_some_and(|all| !all.as_slice().contains(node))
            || self.place.site.as_ref().is_some_and(|sites| {
                !offer.site.as_ref().is_some_and(|site| sites.as_slice().contains(site))
            });
        let (mut kinds, mut part) = offer.total.distance(&self.need);
        let most = offer.cards_mib.iter().max().copied().unwrap_or(0);
        let lacks_mib = self.vram_mib.saturating_sub(most);
        if lacks_mib > 0 {
            kinds += 1;
            part = part.max(lacks_mib.saturating_mul(1_000_000) / self.vram_mib);
        }
        (elsewhere, kinds, part)
    }
}

/// How well a job fits into what is free on a node: the smaller the better.
///
/// Snugly, because a house has few machines and they differ: a small job on the large machine is
/// a large job that must wait. What needs no cards stays off nodes that have some. By name in the
/// end, because the answer may not depend on whose beat came first.
pub fn snugness<'a>(
    need: &Room,
    total: &Room,
    free: &Room,
    node: &'a NodeName,
) -> (bool, u64, u64, u64, &'a NodeName) {
    let left = free.minus(need);
    let wastes_cards = need.gpus == 0 && total.gpus > 0;
    (wastes_cards, left.gpus, left.cpus.milli, left.memory_mib, node)
}

/// Whether some node could ever run each task of a work; else a refusal with the nearest miss.
///
/// `nodes` are all that were ever heard of, also those that are silent now. With none at all every
/// work is accepted: it waits, and says so.
pub fn ever_fits(spec: &WorkSpec, nodes: &[(NodeName, Offer)]) -> Result<(), Refusal> {
    if nodes.is_empty() {
        return Ok(());
    }
    for (at, task) in spec.tasks.iter().enumerate() {
        fits_somewhere(at, task, nodes)?;
    }
    Ok(())
}

fn fits_somewhere(at: usize, task: &Task, nodes: &[(NodeName, Offer)]) -> Result<(), Refusal> {
    let shape = Shape::of(task);
    let named = |node: &NodeName| {
        shape.place.node.as_ref().is_none_or(|names| names.as_slice().contains(node))
    };
    if let Some(names) = &shape.place.node
        && !nodes.iter().any(|(node, _)| named(node))
    {
        let wanted = names.as_slice().first().map(NodeName::as_str).unwrap_or_default();
        let near = nearest(wanted, nodes.iter().map(|(node, _)| node.as_str()));
        let refusal = Refusal::new(
            code::UNSATISFIABLE,
            format!("`{}` asks for the node `{wanted}`, which this pool has never seen", task.name),
        )
        .field(format!("tasks[{at}].where.node"));
        return Err(match near {
            Some(near) => refusal.hint(format!("did you mean `{near}`?")),
            None => {
                let all: Vec<&str> = nodes.iter().map(|(node, _)| node.as_str()).collect();
                refusal.hint(format!("there are: {}", all.join(", ")))
            }
        });
    }
    match nearest_miss(&shape, nodes.iter().map(|(node, offer)| (node, offer))) {
        None => Ok(()),
        Some((node, why)) => Err(Refusal::new(
            code::UNSATISFIABLE,
            format!("no node of the pool could ever run `{}`; nearest: {node} {why}", task.name),
        )
        .field(format!("tasks[{at}].resources"))
        .hint("`longhouse nodes` shows what each node lends")),
    }
}

/// `None` when one of the nodes could run it (or there is none); else the one that comes closest
/// and what it lacks.
pub fn nearest_miss<'a>(
    shape: &Shape,
    nodes: impl Iterator<Item = (&'a NodeName, &'a Offer)>,
) -> Option<(&'a NodeName, String)> {
    let mut best: Option<(Distance, &NodeName, String)> = None;
    for (node, offer) in nodes {
        let Err(why) = shape.fits(node, offer) else { return None };
        let distance = shape.distance(node, offer);
        let known = best.as_ref().map(|(known, name, _)| (*known, *name));
        if known.is_none_or(|known| (distance, node) < known) {
            best = Some((distance, node, why));
        }
    }
    best.map(|(_, node, why)| (node, why))
}

/// Whether it is elsewhere, how many kinds are lacking, and the largest part that is.
type Distance = (bool, usize, u64);

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::amount::Cpus;

    fn offer(cpus: u64, gpus: u64) -> Offer {
        Offer {
            site: None,
            total: Room { cpus: Cpus::new(cpus), gpus, ..Room::default() },
            cards_mib: vec![8192; gpus as usize],
        }
    }

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn spec(task: &str) -> WorkSpec {
        serde_json::from_str(&format!(
            r#"{{"tasks":[{{"name":"a","run":{{"process":{{"argv":["x"]}}}},{task}}}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_work_that_no_node_could_run_is_refused_with_the_nearest_miss() {
        let nodes = [(node("big"), offer(8, 0)), (node("gpu"), offer(4, 1))];
        assert!(ever_fits(&spec(r#""resources":{"cpus":8}"#), &nodes).is_ok());
        assert!(ever_fits(&spec(r#""resources":{"gpus":1,"vram_mib":8000}"#), &nodes).is_ok());
        let refusal = ever_fits(&spec(r#""resources":{"cpus":9}"#), &nodes).unwrap_err();
        assert_eq!(
            refusal.message,
            "no node of the pool could ever run `a`; nearest: big lacks 1 cpu"
        );
        let refusal = ever_fits(&spec(r#""resources":{"cpus":6,"gpus":1}"#), &nodes).unwrap_err();
        assert!(refusal.message.ends_with("nearest: gpu lacks 2 cpus"), "{refusal}");
        let refusal =
            ever_fits(&spec(r#""resources":{"gpus":1,"vram_mib":9000}"#), &nodes).unwrap_err();
        assert!(refusal.message.contains("the largest has 8192 MiB"), "{refusal}");
        assert_eq!(&*refusal.code, code::UNSATISFIABLE);
    }

    #[test]
    fn the_nearest_lacks_the_fewest_kinds_then_the_smallest_part_of_what_is_needed() {
        let nodes = [
            (node("a"), offer(8, 0)),
            (node("b"), offer(8, 0)),
            (node("c"), offer(8, 2)),
            (node("d"), offer(1, 2)),
        ];
        let refusal = ever_fits(&spec(r#""resources":{"gpus":3}"#), &nodes).unwrap_err();
        assert!(refusal.message.ends_with("nearest: c lacks 1 gpu"), "{refusal}");
        let refusal = ever_fits(&spec(r#""resources":{"gpus":3}"#), &nodes[..2]).unwrap_err();
        assert!(refusal.message.ends_with("nearest: a lacks 3 gpus"), "{refusal}");
    }

    #[test]
    fn a_node_that_was_never_seen_gets_the_nearest_name() {
        let nodes = [(node("big"), offer(8, 0))];
        let refusal = ever_fits(&spec(r#""where":{"node":"bg"}"#), &nodes).unwrap_err();
        assert_eq!(refusal.hint.as_deref(), Some("did you mean `big`?"));
        assert_eq!(refusal.field.as_deref(), Some("tasks[0].where.node"));
        assert!(ever_fits(&spec(r#""where":{"site":"home"}"#), &nodes).is_err());
    }

    #[test]
    fn a_pool_without_nodes_takes_everything_and_lets_it_wait() {
        assert!(ever_fits(&spec(r#""resources":{"cpus":900}"#), &[]).is_ok());
    }

    #[test]
    fn small_jobs_leave_cards_and_large_machines_alone() {
        let need = Room { cpus: Cpus::new(1), ..Room::default() };
        let (a, b, c) = (node("a"), node("b"), node("c"));
        let of = |cpus, gpus, name| {
            let total = offer(cpus, gpus).total;
            snugness(&need, &total, &total, name)
        };
        assert!(of(16, 0, &a) < of(2, 1, &b), "cards first");
        assert!(of(4, 0, &c) < of(16, 0, &a), "then the smaller one");
    }
}
