//! Takes works: checks them, writes `accepted`, answers when the fold shows it.

use super::{
    Action, Answer, Behind, Core, PATIENCE_MS, Purpose, Request, Ticket, WriteError, find::may,
    write_refusal,
};
use crate::scheduler::place::{Offer, ever_fits};
use schemas::{
    error::{Refusal, code},
    fact::{Accepted, Fact, Refused},
    id::{Seq, WorkId},
    node::NodeView,
    request::Submitted,
    subject,
    time::{Millis, Seconds},
    token::{CallerName, NodeName, OwnerName, PoolName},
    work::{Submit, WorkSpec, check},
};
use std::sync::Arc;
use uuid::Uuid;

/// Tokens that mean something else where an owner stands in a subject.
pub(super) const RESERVED: &[&str] = &["epoch", "manager", "scheduler", subject::ALL];

/// How a submit came, and so how it is answered.
#[derive(Clone, Debug)]
pub(super) enum From {
    Submit(Ticket),
    Run(Ticket),
    Inbox { ticket: Ticket, seq: Seq, derived: WorkId, name: String },
}

/// A submit that is on its way into the journal.
#[derive(Clone, Debug)]
pub(super) struct Submitting {
    from: From,
    caller: CallerName,
    owner: OwnerName,
    work: WorkId,
    spec: Arc<WorkSpec>,
    hold_s: Option<Seconds>,
    since: Millis,
}

impl Core {
    /// Takes a submit; `fresh` is its id when it brings none.
    pub(super) fn submit(
        &mut self,
        from: From,
        caller: &CallerName,
        submit: &Submit,
        fresh: WorkId,
    ) -> Result<(), Refusal> {
        if let Some(id) = submit.work
            && id.made_at_ms().is_none()
        {
            return Err(Refusal::new(code::INVALID, format!("`work` is {id}, no UUIDv7"))
                .field("work")
                .hint("leave it out to be given one"));
        }
        if matches!(from, From::Run(_)) {
            self.may_hold(caller)?;
        }
        let owner = match &submit.owner {
            None => OwnerName::of(caller),
            Some(owner) if may(caller, owner) => owner.clone(),
            Some(owner) => {
                let message = format!("{caller} may not submit works of `{owner}`");
                return Err(Refusal::new(code::FORBIDDEN, message).field("owner"));
            }
        };
        if RESERVED.contains(&owner.as_str()) {
            let message = format!("`{owner}` is a name of the house itself and owns no works");
            return Err(Refusal::new(code::INVALID, message).field("owner"));
        }
        let hold_s = submit.hold_s;
        let work = submit.work.unwrap_or(fresh);
        let spec = check::normalise(submit.clone())?;
        check::check(&spec)?;
        if !self.pools.contains_key(&spec.pool) {
            let message = format!("there is no pool `{}`", spec.pool);
            let pools: Vec<&str> = self.pools.keys().map(PoolName::as_str).collect();
            return Err(Refusal::new(code::INVALID, message)
                .field("pool")
                .hint(format!("there are: {}", pools.join(", "))));
        }
        let submitting = Submitting {
            from,
            caller: caller.clone(),
            owner,
            work,
            spec: Arc::new(spec),
            hold_s,
            since: self.now.at,
        };
        if self.pools.values().any(|pool| pool.fold.work(work).is_some()) {
            self.decide(submitting);
        } else if let Some(same) = self.submits.get_mut(&work) {
            same.push(submitting);
        } else if self.knows_no_node(&submitting) || self.misfit(&submitting).is_some() {
            // A node may have come since the scheduler was asked.
            self.ask_nodes(&submitting.spec.pool.clone());
            let pool = self.pools.get_mut(&submitting.spec.pool).expect("it was just looked up");
            pool.unsure.push(submitting);
        } else {
            return self.accept(submitting);
        }
        Ok(())
    }

    /// Writes `accepted`.
    fn accept(&mut self, submitting: Submitting) -> Result<(), Refusal> {
        let fact = Fact::Accepted(Accepted {
            work: submitting.work,
            by: submitting.caller.clone(),
            spec: submitting.spec.clone(),
        });
        let body = fact.to_json();
        if body.len() > self.limits.max_body {
            return Err(Refusal::new(
                code::TOO_LARGE,
                format!(
                    "the work has {} bytes, more than the {} that one message may hold",
                    body.len(),
                    self.limits.max_body
                ),
            )
            .hint(
                "send it in parts: `submit` it with `\"open\": true`, then `append` tasks and \
                 items, then `close`",
            ));
        }
        let work = submitting.work;
        let pool = &submitting.spec.pool;
        let subject = subject::fact(pool, &submitting.owner, Some(work), fact.kind());
        self.submits.insert(work, vec![submitting]);
        self.write(Purpose::Submit(work), subject, body, true);
        Ok(())
    }

    /// The fold has met an `accepted` with this id.
    pub(super) fn shown(&mut self, pool: &PoolName, work: WorkId) {
        for submitting in self.submits.remove(&work).unwrap_or_default() {
            if self.pools[pool].fold.work(work).is_some() {
                self.decide(submitting);
            } else {
                let message = "the journal did not take the work";
                self.refuse_submit(submitting, Refusal::new(code::INTERNAL, message));
            }
        }
    }

    /// The id is known: the same work is answered as the first, another one is refused.
    fn decide(&mut self, submitting: Submitting) {
        let work = submitting.work;
        let known = self.pools.values().find_map(|pool| pool.fold.work(work));
        let same =
            known.filter(|known| known.owner == submitting.owner && known.spec == submitting.spec);
        let Some(same) = same else {
            return self.refuse_submit(submitting, id_taken(work));
        };
        let (state, at, name) = (same.state, same.at, same.spec.name.clone());
        let pool = same.spec.pool.clone();
        match submitting.from {
            From::Submit(ticket) => {
                let owner = submitting.owner;
                let answer = Submitted { work, name, owner, state, submitted_at: Some(at) };
                self.answer(ticket, Answer::Submitted(answer));
            }
            From::Run(ticket) if state.is_ended() => self.answer_run(ticket, &pool, work, None),
            From::Run(ticket) => {
                self.hold(ticket, &submitting.caller, work, true, submitting.hold_s);
            }
            From::Inbox { ticket, .. } => self.out.push(Action::Acknowledge { ticket }),
        }
    }

    pub(super) fn submit_written(&mut self, work: WorkId, result: Result<Seq, WriteError>) {
        match result {
            // Answered when the fold shows it.
            Ok(_) => {}
            Err(WriteError::Conflict) => {
                // Somebody else was first; the fold will say with what.
                let Some(first) = self.submits.get(&work).and_then(|all| all.first()) else {
                    return;
                };
                let behind = Behind {
                    ticket: 0,
                    caller: first.caller.clone(),
                    request: Request::Submit(Box::new(Submit {
                        work: Some(work),
                        ..Submit::default()
                    })),
                    fresh: Uuid::nil(),
                    since: self.now.at,
                    ends: None,
                };
                self.look_later(behind);
            }
            Err(error) => {
                for submitting in self.submits.remove(&work).unwrap_or_default() {
                    self.refuse_submit(submitting, write_refusal(&error));
                }
            }
        }
    }

    /// After a conflict the fold has reached everything, and still does not know the work: the
    /// subject was used, but not for this.
    pub(super) fn taken(&mut self, behind: &Behind) {
        let Request::Submit(submit) = &behind.request else { return };
        let Some(work) = submit.work else { return };
        for submitting in self.submits.remove(&work).unwrap_or_default() {
            self.refuse_submit(submitting, id_taken(work));
        }
    }

    pub(super) fn submits_overdue(&mut self) {
        let now = self.now.at;
        let late: Vec<WorkId> = self
            .submits
            .iter()
            .filter(|(_, all)| all.first().is_some_and(|s| now.since(s.since) >= PATIENCE_MS))
            .map(|(work, _)| *work)
            .collect();
        for work in late {
            let error = WriteError::Unknown("the journal does not show it".to_owned());
            for submitting in self.submits.remove(&work).unwrap_or_default() {
                self.refuse_submit(submitting, write_refusal(&error));
            }
        }
    }

    /// A message of the inbox.
    pub(super) fn on_inbox(
        &mut self,
        ticket: Ticket,
        caller: CallerName,
        seq: Seq,
        submit: Result<Box<Submit>, Refusal>,
        derived: WorkId,
    ) {
        if RESERVED.contains(&caller.as_str()) {
            // Nothing could be recorded in that name.
            return self.out.push(Action::Acknowledge { ticket });
        }
        let name = submit.as_ref().map(|submit| submit.name.clone()).unwrap_or_default();
        let from = From::Inbox { ticket, seq, derived, name };
        let decided =
            submit.and_then(|submit| self.submit(from.clone(), &caller, &submit, derived));
        if let Err(refusal) = decided {
            self.refuse_inbox(from, &caller, refusal);
        }
    }

    fn refuse_submit(&mut self, submitting: Submitting, refusal: Refusal) {
        match submitting.from {
            From::Submit(ticket) | From::Run(ticket) => self.refuse(ticket, refusal),
            from @ From::Inbox { .. } => self.refuse_inbox(from, &submitting.caller, refusal),
        }
    }

    /// Records that a message of the inbox is not accepted; what may still be accepted later stays.
    fn refuse_inbox(&mut self, from: From, caller: &CallerName, refusal: Refusal) {
        let From::Inbox { ticket, seq, derived, name } = from else { return };
        if matches!(&*refusal.code, code::NOT_STORED | code::DISK_FULL | code::NOT_READY) {
            return self.out.push(Action::Later { ticket });
        }
        let shorten = |text: String| text.chars().take(1000).collect::<String>();
        let error = Refusal {
            message: shorten(refusal.message),
            hint: refusal.hint.map(shorten),
            field: refusal.field.map(shorten),
            ..refusal
        };
        let name = name.chars().filter(|c| !c.is_control()).take(200).collect();
        let fact =
            Fact::Refused(Refused { work: derived, name, by: caller.clone(), inbox: seq, error });
        let Some(pool) = self.pools.keys().next().cloned() else { return };
        let owner = OwnerName::of(caller);
        let subject = subject::fact(&pool, &owner, Some(derived), fact.kind());
        self.write(Purpose::Refused(ticket), subject, fact.to_json(), true);
    }

    fn ask_nodes(&mut self, pool: &PoolName) {
        let Some(known) = self.pools.get_mut(pool) else { return };
        if !known.asking_nodes {
            known.asking_nodes = true;
            self.out.push(Action::AskNodes { pool: pool.clone() });
        }
    }

    pub(super) fn on_nodes(&mut self, pool: &PoolName, nodes: Option<Vec<NodeView>>) {
        let Some(known) = self.pools.get_mut(pool) else { return };
        known.asking_nodes = false;
        let answered = nodes.is_some();
        if let Some(nodes) = nodes {
            known.nodes = nodes.into_iter().map(offer).collect();
        }
        for submitting in std::mem::take(&mut known.unsure) {
            let misfit = if answered { self.misfit(&submitting) } else { None };
            if let Some(refusal) = misfit {
                self.refuse_submit(submitting, refusal);
            } else if let Some(same) = self.submits.get_mut(&submitting.work) {
                same.push(submitting);
            } else if self.pool_of(submitting.work).is_some() {
                self.decide(submitting);
            } else if let Err(refusal) = self.accept(submitting.clone()) {
                self.refuse_submit(submitting, refusal);
            }
        }
    }

    fn knows_no_node(&self, submitting: &Submitting) -> bool {
        self.pools.get(&submitting.spec.pool).is_some_and(|pool| pool.nodes.is_empty())
    }

    /// Why no node that is known could ever run it; `None` when one could, or none is known.
    fn misfit(&self, submitting: &Submitting) -> Option<Refusal> {
        let pool = self.pools.get(&submitting.spec.pool)?;
        ever_fits(&submitting.spec, &pool.nodes).err()
    }
}

/// What a node lends, as placement sees it.
fn offer(view: NodeView) -> (NodeName, Offer) {
    let cards_mib = view.inventory.cards.iter().map(|card| card.vram_mib).collect();
    (view.node, Offer { site: view.site, total: view.total, cards_mib })
}

fn id_taken(work: WorkId) -> Refusal {
    Refusal::new(code::ID_TAKEN, format!("the id {work} belongs to another work"))
        .field("work")
        .hint("choose another id, or leave it out to be given one")
}
