//! What clients ask of a scheduler.

use super::core::{Action, ClientReply, ClientRequest, Core};
use schemas::{
    error::{Refusal, code},
    fact::{Fact, NodeFact, PoolFact},
    request::{Done, Explain, NodesReply},
    subject,
    token::{CallerName, NodeName},
    work::check::nearest,
};

impl Core {
    pub(super) fn on_client(&mut self, token: u64, by: CallerName, request: ClientRequest) {
        if self.acting.is_none() {
            let refusal = Refusal::new(code::NOT_ACTING, "this scheduler does not act")
                .hint("ask again in a moment");
            self.out.push(Action::Refuse { token, refusal });
            return;
        }
        match request {
            ClientRequest::Explain(explain) => self.on_explain(token, &explain),
            ClientRequest::Nodes => {
                let reply =
                    NodesReply { nodes: self.views(), paused: self.fold.paused().is_some() };
                let reply = ClientReply::Nodes(Box::new(reply));
                self.out.push(Action::Answer { token, reply });
            }
            ClientRequest::Drain(change) => self.on_drain(token, by, change.node, true),
            ClientRequest::Undrain(change) => self.on_drain(token, by, change.node, false),
            ClientRequest::Pause => self.on_pause(token, by, true),
            ClientRequest::Resume => self.on_pause(token, by, false),
        }
    }

    fn on_explain(&mut self, token: u64, explain: &Explain) {
        let answer = match (&explain.work, &explain.node) {
            (Some(id), None) => match self.fold.work(*id) {
                Some(work) => match &explain.task {
                    Some(name) if work.task(name).is_none() => Err(Refusal::new(
                        code::UNKNOWN_TASK,
                        format!("the work has no task `{name}`"),
                    )
                    .field("task")),
                    only => Ok(self.explain_work(work, only.as_ref())),
                },
                None => Err(Refusal::new(
                    code::UNKNOWN_WORK,
                    format!("the pool {} has no work {id}", self.pool),
                )
                .field("work")),
            },
            (None, Some(node)) => self.explain_node(node).ok_or_else(|| self.unknown_node(node)),
            _ => {
                Err(Refusal::new(code::INVALID, "give exactly one of `work` and `node`")
                    .field("work"))
            }
        };
        self.out.push(match answer {
            Ok(explained) => Action::Answer { token, reply: ClientReply::Explained(explained) },
            Err(refusal) => Action::Refuse { token, refusal },
        });
    }

    fn unknown_node(&self, node: &NodeName) -> Refusal {
        let message = format!("the pool {} has no node `{node}`", self.pool);
        let refusal = Refusal::new(code::UNKNOWN_NODE, message).field("node");
        match nearest(node.as_str(), self.names.keys().map(NodeName::as_str)) {
            Some(near) => refusal.hint(format!("did you mean `{near}`?")),
            None => refusal,
        }
    }

    fn on_drain(&mut self, token: u64, by: CallerName, node: NodeName, drain: bool) {
        let is_drained = self.fold.drained().contains_key(&node);
        if !self.names.contains_key(&node) && !is_drained {
            let refusal = self.unknown_node(&node);
            self.out.push(Action::Refuse { token, refusal });
            return;
        }
        let told = match drain {
            true => format!("{node} finishes what it has and takes nothing new"),
            false => format!("{node} takes jobs"),
        };
        if is_drained == drain {
            self.tell_done(token, told);
            return;
        }
        let fact = NodeFact { epoch: self.epoch(), node: node.clone(), by };
        let fact = if drain { Fact::Drained(fact) } else { Fact::Undrained(fact) };
        let subject = subject::pool_fact(&self.pool, Some(&node), fact.kind());
        self.append_for(subject, fact, token, told);
    }

    fn on_pause(&mut self, token: u64, by: CallerName, pause: bool) {
        let told = match pause {
            true => format!("nothing new is started in the pool {}", self.pool),
            false => format!("the pool {} goes on", self.pool),
        };
        if self.fold.paused().is_some() == pause {
            self.tell_done(token, told);
            return;
        }
        let fact = PoolFact { epoch: self.epoch(), by };
        let fact = if pause { Fact::Paused(fact) } else { Fact::Resumed(fact) };
        let subject = subject::pool_fact(&self.pool, None, fact.kind());
        self.append_for(subject, fact, token, told);
    }

    pub(super) fn tell_done(&mut self, token: u64, told: String) {
        let reply = ClientReply::Done(Done { message: told });
        self.out.push(Action::Answer { token, reply });
    }
}
