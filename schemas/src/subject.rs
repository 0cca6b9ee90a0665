//! Where each message is said. Subjects begin with `lh.`; who speaks is a token of the subject,
//! because a message does not carry its sender.

use crate::{
    id::WorkId,
    token::{CallerName, NodeName, OwnerName, PoolName, StreamName},
};

/// The token that stands for many works, or for all nodes.
pub const ALL: &str = "all";

/// Verbs of `lh.work.…`.
pub const WORK_VERBS: &[&str] = &[
    "submit", "run", "append", "close", "get", "list", "results", "cancel", "retry", "wait",
    "follow",
];

/// Verbs of `lh.sched.<pool>.…`.
pub const SCHED_VERBS: &[&str] = &["explain", "nodes", "drain", "undrain", "pause", "resume"];

/// `lh.work.<verb>.<caller>`
pub fn work(verb: &str, caller: &CallerName) -> String {
    format!("lh.work.{verb}.{caller}")
}

/// `lh.sched.<pool>.<verb>.<caller>`
pub fn sched(pool: &PoolName, verb: &str, caller: &CallerName) -> String {
    format!("lh.sched.{pool}.{verb}.{caller}")
}

/// `lh.inbox.<caller>`
pub fn inbox(caller: &CallerName) -> String {
    format!("lh.inbox.{caller}")
}

/// `lh.fact.<pool>.<owner>.<work>.<kind>`; `None` for facts over several works of one owner.
pub fn fact(pool: &PoolName, owner: &OwnerName, work: Option<WorkId>, kind: &str) -> String {
    match work {
        Some(work) => format!("lh.fact.{pool}.{owner}.{work}.{kind}"),
        None => format!("lh.fact.{pool}.{owner}.all.{kind}"),
    }
}

/// `lh.fact.<pool>.scheduler.<node|all>.<kind>`
pub fn pool_fact(pool: &PoolName, node: Option<&NodeName>, kind: &str) -> String {
    format!("lh.fact.{pool}.scheduler.{}.{kind}", node.map_or(ALL, NodeName::as_str))
}

/// `lh.fact.<pool>.epoch`
pub fn epoch(pool: &PoolName) -> String {
    format!("lh.fact.{pool}.epoch")
}

/// `lh.report.<pool>.<node>`
pub fn report(pool: &PoolName, node: &NodeName) -> String {
    format!("lh.report.{pool}.{node}")
}

/// `lh.node.<node>.<verb>`
pub fn node(node: &NodeName, verb: &str) -> String {
    format!("lh.node.{node}.{verb}")
}

/// `lh.beat.<node>`
pub fn beat(node: &NodeName) -> String {
    format!("lh.beat.{node}")
}

/// `lh.out.<owner>.<work>.<stream>.<node>`
pub fn out(owner: &OwnerName, work: WorkId, stream: &StreamName, node: &NodeName) -> String {
    format!("lh.out.{owner}.{work}.{stream}.{node}")
}

/// `lh.live.<owner>.<work>.<stream>.<node>`
pub fn live(owner: &OwnerName, work: WorkId, stream: &StreamName, node: &NodeName) -> String {
    format!("lh.live.{owner}.{work}.{stream}.{node}")
}

/// `lh.ack.<session>.<caller>`
pub fn ack(session: &str, caller: &CallerName) -> String {
    format!("lh.ack.{session}.{caller}")
}

/// What a subject of the journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactSubject<'a> {
    /// Which pool.
    pub pool: PoolName,
    /// Whose works; `None` for facts of the pool itself.
    pub owner: Option<OwnerName>,
    /// Its kind.
    pub kind: &'a str,
}

/// Takes a subject of the journal apart; `None` when it is none.
pub fn parse_fact(subject: &str) -> Option<FactSubject<'_>> {
    let rest = subject.strip_prefix("lh.fact.")?;
    let mut tokens = rest.split('.');
    let pool = PoolName::new(tokens.next()?).ok()?;
    let owner = tokens.next()?;
    let Some(_) = tokens.next() else {
        return (owner == "epoch").then_some(FactSubject { pool, owner: None, kind: "epoch" });
    };
    let kind = tokens.next()?;
    if tokens.next().is_some() {
        return None;
    }
    let owner = match owner {
        "scheduler" => None,
        owner => Some(OwnerName::new(owner).ok()?),
    };
    Some(FactSubject { pool, owner, kind })
}

/// What a subject of output says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutSubject {
    /// Whose work.
    pub owner: OwnerName,
    /// Which work.
    pub work: WorkId,
    /// Which stream.
    pub stream: StreamName,
    /// Which node says it.
    pub node: NodeName,
}

/// Takes `lh.out.…` or `lh.live.…` apart; `None` when it is neither.
pub fn parse_out(subject: &str) -> Option<OutSubject> {
    let rest = subject.strip_prefix("lh.out.").or_else(|| subject.strip_prefix("lh.live."))?;
    let mut tokens = rest.split('.');
    let parsed = OutSubject {
        owner: OwnerName::new(tokens.next()?).ok()?,
        work: tokens.next()?.parse().ok()?,
        stream: StreamName::new(tokens.next()?).ok()?,
        node: NodeName::new(tokens.next()?).ok()?,
    };
    tokens.next().is_none().then_some(parsed)
}

/// The last token of a subject, as a name.
pub fn last<T: std::str::FromStr>(subject: &str) -> Option<T> {
    subject.rsplit('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_found_where_it_was_put() {
        let pool = PoolName::main();
        let owner = OwnerName::owner();
        let id: WorkId = "0198f0c2-7b5e-7cc3-98c4-dc0c0c07398f".parse().unwrap();
        let subject = fact(&pool, &owner, Some(id), "accepted");
        let parsed = parse_fact(&subject).unwrap();
        assert_eq!(
            parsed,
            FactSubject { pool: pool.clone(), owner: Some(owner.clone()), kind: "accepted" }
        );
        assert_eq!(parse_fact(&epoch(&pool)).unwrap().kind, "epoch");
        assert_eq!(parse_fact(&pool_fact(&pool, None, "paused")).unwrap().owner, None);
        for bad in ["lh.fact.main", "lh.fact.main.x", "lh.fact.main.a.b.c.d", "lh.beat.a", ""] {
            assert_eq!(parse_fact(bad), None, "{bad}");
        }
        let stream = StreamName::stdout();
        let node = NodeName::new("m4").unwrap();
        let parsed = parse_out(&out(&owner, id, &stream, &node)).unwrap();
        assert_eq!(parsed, OutSubject { owner, work: id, stream, node });
    }
}
