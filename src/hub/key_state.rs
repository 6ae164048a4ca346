//! What this process knows of one key, and what it does about it: a state machine without I/O.
//!
//! It is told of answers, messages and the time, and says which [`Effect`]s shall follow.

mod claims;
mod grants;
mod latest_record;
mod notifications;
mod outage;
mod participants;
mod renewal;
mod request;
mod single_flight;
mod subscription;
mod watchers;

use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::message::{OutageId, Renewal, Settlement, Update};
use super::{Id, Lease, RunConfig, WeakHandle};
use crate::clock::Stamp;
use crate::error::Error;
use crate::key::Key;
use crate::protocol::record::{RecordSnapshot, Token};
use crate::protocol::{Op, Reply};
use grants::{Grants, Settling};
use latest_record::LatestRecord;
use outage::{Outage, RenewalOutage};
use participants::{ParticipantState, Participants, Stage};
use renewal::RenewOrigin;
use request::{Renew, Request, Withdraw};
use subscription::Subscription;
pub(super) use watchers::WatchItem;
use watchers::Watchers;

/// The longest a settlement is tried, if the lease does not end later.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the hub shall do.
pub(super) enum Effect {
    Call(Call),
    Watch,
    Unwatch,
}

/// One operation on its way to the store.
pub(super) struct Call {
    /// Given by the hub; a retry and what follows from an answer take it over.
    pub(super) ticket: Option<TaskTrackerToken>,
    pub(super) request: Request,
}

impl Call {
    /// Whether time may make it needless; see [`KeyState::still_wants`].
    pub(super) fn is_renewal(&self) -> bool {
        matches!(self.request, Request::Renew(_))
    }
}

pub(super) struct KeyState {
    key: Key,
    hub: WeakHandle,
    participants: Participants,
    watchers: Watchers,
    grants: Grants,
    latest: LatestRecord,
    subscription: Subscription,
    /// Who claims on behalf of all that wait.
    refreshing: Option<Id>,
    /// Something may have been missed since that claim was sent.
    refresh_again: bool,
    /// Those who wait have not been told the newest.
    behind: bool,
    outage: Option<Outage>,
    renewals_fail: Option<RenewalOutage>,
    /// Calls that have not come back.
    calls: usize,
    /// Claims among them.
    claims: usize,
    /// What shall follow from the present act.
    effects: Vec<Effect>,
}

impl KeyState {
    pub(super) fn new(key: Key, hub: WeakHandle, connected: bool) -> Self {
        Self {
            key,
            hub,
            participants: Participants::default(),
            watchers: Watchers::default(),
            grants: Grants::default(),
            latest: LatestRecord::default(),
            subscription: Subscription::new(connected),
            refreshing: None,
            refresh_again: false,
            behind: false,
            outage: None,
            renewals_fail: None,
            calls: 0,
            claims: 0,
            effects: Vec::new(),
        }
    }

    /// Whether nothing is left to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.participants.is_empty()
            && self.watchers.is_empty()
            && self.grants.is_empty()
            && self.calls == 0
            && self.subscription.is_none()
            && self.outage.is_none()
    }

    /// Acts, and says what shall follow in the list that is given.
    pub(super) fn act(&mut self, effects: Vec<Effect>, act: impl FnOnce(&mut Self)) -> Vec<Effect> {
        self.effects = effects;
        act(self);
        self.unsubscribe_if_idle();
        std::mem::take(&mut self.effects)
    }

    /// Whether it has more to tell; see [`KeyState::catch_up`].
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    // What participants ask.

    pub(super) fn join(&mut self, id: Id, terms: Arc<RunConfig>, mailbox: UnboundedSender<Update>) {
        let participant = ParticipantState::new(Token::random(), terms, mailbox);
        if let Some((outage, error)) = self.present_outage() {
            participant.notify(Update::Unavailable(error.clone(), outage));
        }
        self.participants.insert(id, participant);
        if self.outage.as_ref().is_none_or(|outage| !outage.claims) {
            self.claim(id);
        }
    }

    pub(super) fn leave(&mut self, id: Id, now: Instant) {
        if self.watchers.remove(id) {
            return;
        }
        let Some(participant) = self.participants.remove(id) else {
            return;
        };
        // A claim on its way is given back when its answer comes, a grant by its own drop.
        if participant.stage != Stage::Holding && !participant.claiming {
            let call = self.withdrawal(participant.token, &participant.terms, None, now);
            self.send(call);
        }
    }

    pub(super) fn confirm(&mut self, lease: Arc<Lease>) {
        self.renew(lease, None, None, RenewOrigin::Stream);
    }

    pub(super) fn renewal(&mut self, renewal: Renewal) {
        let Renewal {
            lease,
            length,
            checkpoint,
            reply,
        } = renewal;
        self.renew(lease, length, checkpoint, RenewOrigin::Guard(reply));
    }

    /// A grant that nobody began to work on.
    pub(super) fn give_back(&mut self, lease: &Lease, now: Instant) {
        self.grants.forget(lease.fence);
        self.participants.remove(lease.id);
        let call = self.withdrawal(lease.token, &lease.terms, None, now);
        self.send(call);
    }

    pub(super) fn settle(&mut self, settlement: Settlement, now: Instant) {
        let Settlement {
            lease,
            outcome,
            reply,
        } = settlement;
        self.grants.on_settle_requested(lease.fence);
        self.ask(Request::Settle(Settling {
            began: now,
            give_up: now + lease.left().max(PATIENCE),
            outcome,
            lease,
            reply,
        }));
    }

    // What the store says.

    /// `sent` is an instant before the call left: the server's clock was read later.
    pub(super) fn answered(
        &mut self,
        call: Call,
        result: Result<Reply, Error>,
        sent: Stamp,
        now: Instant,
    ) {
        self.calls -= 1;
        let is_claim = call.request.is_claim();
        self.claims -= usize::from(is_claim);
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return self.turned_away(call, error, now),
        };
        self.latest.answered(sent, reply.frame.at);
        let newer = self.latest.merge(&reply.frame, Some(sent.instant), now);
        let Call { ticket, request } = call;
        // Before the news spreads, so that no holder takes its own end for a loss.
        match request {
            Request::Claim { id, token, terms } => {
                if self.participants.on_claim_answered(id, token) {
                    self.claimed(id, token, &reply, now);
                } else if (reply.ok || reply.position.is_some())
                    && reply
                        .record()
                        .is_some_and(|told| told.fence > self.grants.except_fence(token))
                {
                    let call = self.withdrawal(token, &terms, ticket, now);
                    self.send(call);
                }
                self.refreshed(id);
            }
            Request::Renew(renew) => self.renewed(renew, &reply, sent, now),
            Request::Settle(settling) => self.settled(settling, &reply),
            Request::Withdraw(_) => {}
            Request::Read => self.looked(now),
            // The caller may have stopped waiting.
            Request::Execute { answer, .. } => drop(answer.send(Ok(reply.clone()))),
        }
        if newer {
            self.spread(now);
        }
        self.show(&reply.frame, Some(sent.instant), now);
        self.recover(is_claim);
    }

    pub(super) fn heard(&mut self, frame: Option<RecordSnapshot>, now: Instant) {
        match frame {
            Some(frame) => {
                if self.latest.merge(&frame, None, now) {
                    self.spread(now);
                }
                self.show(&frame, None, now);
            }
            // What cannot be read now says why when it is asked for.
            None => self.refresh(),
        }
    }

    // What time does.

    /// When [`KeyState::fire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let retry = self.outage.as_ref().and_then(|outage| outage.retry_at);
        let deadlines = self.grants.deadline().into_iter();
        deadlines
            .chain(retry)
            .chain(self.subscription.retry_at())
            .chain(self.claim_at())
            .chain(self.look_at())
            .min()
    }

    pub(super) fn fire(&mut self, now: Instant) {
        self.lapse(now);
        self.retry(now);
        self.watch_again(now);
        if self.claim_at().is_some_and(|at| at <= now) {
            self.refresh();
        }
        if self.look_at().is_some_and(|at| at <= now) {
            self.look();
        }
    }

    /// Asks on behalf of somebody who takes no part.
    pub(super) fn answer(&mut self, op: Op, answer: oneshot::Sender<Result<Reply, Error>>) {
        self.ask(Request::Execute { op, answer });
    }

    /// Leaving, in the name of a token that nobody waits with.
    fn withdrawal(
        &self,
        token: Token,
        terms: &Arc<RunConfig>,
        ticket: Option<TaskTrackerToken>,
        now: Instant,
    ) -> Call {
        let request = Request::Withdraw(Withdraw {
            token,
            terms: terms.clone(),
            except_fence: self.grants.except_fence(token),
            // Later than that its grant has ended anyway.
            give_up: now + Duration::from_millis(terms.lease),
        });
        Call { ticket, request }
    }

    fn ask(&mut self, request: Request) {
        self.send(Call {
            ticket: None,
            request,
        });
    }

    fn send(&mut self, call: Call) {
        self.calls += 1;
        self.claims += usize::from(call.request.is_claim());
        self.effects.push(Effect::Call(call));
    }
}
