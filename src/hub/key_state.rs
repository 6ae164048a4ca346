//! The state machine of one key in this process, without I/O.
//!
//! Each act handles a request, an answer, a message or the time, and returns the [`Output`]s that
//! follow from it. The machine has no channel, timer, telemetry or source of random numbers of its
//! own, so `proof/tests/model.rs` drives the same code as the hub's task does.
//!
//! This is the module to read first: everything that a process decides about a key is here.
//!
//! How a waiter gets the work:
//!
//! 1. A new participant claims. If another worker holds the key, the hub subscribes to the key's
//!    channel. When the server has acknowledged that, one participant claims again, because
//!    everything that happened in between was missed (`subscription`).
//! 2. The script that ends an attempt without success grants the work to the head of the queue. The
//!    head learns it from the published record, its stream yields the guard, and the grant is
//!    confirmed meanwhile. If it is not confirmed within the window (500 ms, or the lease if that
//!    is shorter), other waiters claim (`notifications`, `claims`).
//! 3. At the end of a lease, the waiters claim one after the other (`claims`).
//! 4. After anything that may have cost a message, one participant claims for all waiters
//!    (`KeyState::missed`).
//!
//! A settlement is tried until its lease ends, and for 5 s at least.

mod claims;
mod fork;
mod grants;
mod latest_record;
mod notifications;
mod outage;
mod output;
mod participants;
mod renewal;
mod request;
mod single_flight;
mod subscription;
mod watchers;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::message::{OutageId, Update};
use super::{Id, Lease, RunConfig};
use crate::clock::Stamp;
use crate::error::Error;
use crate::key::Key;
use crate::protocol::record::{RecordSnapshot, Token};
use crate::protocol::{ClaimReply, Op, Outcome, Reply};
pub(super) use fork::Forks;
use grants::{Grants, Settling};
use latest_record::LatestRecord;
use outage::{Outage, RenewalOutage};
pub(super) use output::{Answer, Call, Fresh, OutageKind, Output, Report, Turn, WatchItem};
use participants::{ParticipantState, Participants, Stage};
use renewal::RenewOrigin;
use request::{Renew, Request, Withdraw};
use subscription::Subscription;
use watchers::Watchers;

/// Shortest time for which a settlement is retried. If more of the lease is left, that time counts.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine of one key. `C` is the caller of a request, which the machine only passes on.
#[derive(Debug, Hash)]
pub(super) struct KeyState<C> {
    key: Key,
    participants: Participants,
    watchers: Watchers,
    grants: Grants,
    latest: LatestRecord,
    subscription: Subscription,
    /// Participant whose claim refreshes all waiters, while that claim is unanswered.
    refreshing: Option<Id>,
    /// Whether a refresh follows the claims in flight, whose answers may be too old.
    refresh_again: bool,
    /// Whether the waiters still have to be notified of the latest record.
    deferred: bool,
    outage: Option<Outage<C>>,
    renewals_fail: Option<RenewalOutage>,
    /// Number of unanswered calls, including those that subscribe and unsubscribe.
    calls: usize,
    /// Number of unanswered claims.
    claims: usize,
}

impl<C: Default> KeyState<C> {
    pub(super) fn new(key: Key, connected: bool) -> Self {
        Self {
            key,
            participants: Participants::default(),
            watchers: Watchers::default(),
            grants: Grants::default(),
            latest: LatestRecord::default(),
            subscription: Subscription::new(connected),
            refreshing: None,
            refresh_again: false,
            deferred: false,
            outage: None,
            renewals_fail: None,
            calls: 0,
            claims: 0,
        }
    }

    /// Whether the machine has nothing left to do and may be dropped.
    pub(super) fn is_over(&self) -> bool {
        self.participants.is_empty()
            && self.watchers.is_empty()
            && self.grants.is_empty()
            && self.calls == 0
            && self.subscription.is_none()
            && self.outage.is_none()
    }

    /// Runs an act, then unsubscribes if no participant or watcher is left.
    pub(super) fn act(
        &mut self,
        turn: &mut Turn<'_, C>,
        act: impl FnOnce(&mut Self, &mut Turn<'_, C>),
    ) {
        act(self, turn);
        self.unsubscribe_if_idle(turn);
    }

    /// Whether notifications are pending; see [`KeyState::notify_deferred`].
    pub(super) fn has_deferred(&self) -> bool {
        self.deferred
    }

    // Requests of streams, guards and workers.

    pub(super) fn join(&mut self, id: Id, terms: Arc<RunConfig>, turn: &mut Turn<'_, C>) {
        let participant = ParticipantState::new(turn.fresh.token(), terms);
        if let Some((outage, error)) = self.present_outage() {
            turn.notify(id, Update::Unavailable(error.clone(), outage));
        }
        self.participants.insert(id, participant);
        // During an outage of claims, `retry` and `recover` send the first claim.
        if self.outage.as_ref().is_none_or(|outage| !outage.claims) {
            self.claim(id, turn);
        }
    }

    pub(super) fn leave(&mut self, id: Id, turn: &mut Turn<'_, C>) {
        if self.watchers.remove(id) {
            return turn.close(id);
        }
        let Some(participant) = self.participants.remove(id) else {
            return;
        };
        turn.close(id);
        // A claim in flight is withdrawn when its answer comes. A grant gives itself back when it
        // is dropped.
        if participant.stage != Stage::Holding && !participant.claiming {
            self.withdraw(&participant, turn);
        }
    }

    pub(super) fn confirm(&mut self, lease: Arc<Lease>, turn: &mut Turn<'_, C>) {
        let origin = RenewOrigin::Stream;
        self.renew(lease, None, None, origin, C::default(), turn);
    }

    /// Restarts the lease of a guard, for at least `length` ms if that is given, and stores the
    /// checkpoint.
    pub(super) fn extend(
        &mut self,
        lease: Arc<Lease>,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
        caller: C,
        turn: &mut Turn<'_, C>,
    ) {
        self.renew(lease, length, checkpoint, RenewOrigin::Guard, caller, turn);
    }

    /// Gives back a grant of which no guard was made.
    pub(super) fn give_back(&mut self, lease: &Lease, turn: &mut Turn<'_, C>) {
        self.grants.forget(lease.fence);
        if self.participants.remove(lease.id).is_some() {
            turn.close(lease.id);
        }
        let call = self.withdrawal(lease.token, &lease.terms, C::default(), turn.now.instant);
        self.send(call, turn);
    }

    /// The stream has gone before it got its grant.
    pub(super) fn undelivered(&mut self, lease: &Lease, turn: &mut Turn<'_, C>) {
        self.grants.forget(lease.fence);
        let Some(participant) = self.participants.remove(lease.id) else {
            return;
        };
        turn.close(lease.id);
        // A claim in flight is answered first, and withdrawn then.
        if !participant.claiming {
            self.withdraw(&participant, turn);
        }
    }

    pub(super) fn settle(
        &mut self,
        lease: Arc<Lease>,
        outcome: Outcome,
        caller: C,
        turn: &mut Turn<'_, C>,
    ) {
        let now = turn.now.instant;
        self.grants.on_settle_requested(lease.fence);
        let request = Request::Settle(Settling {
            began: now,
            retry_until: now + lease.left().max(PATIENCE),
            outcome,
            lease,
        });
        self.send(Call { caller, request }, turn);
    }

    /// Executes an operation for a caller that takes no part in the run.
    pub(super) fn execute(&mut self, op: Op, caller: C, turn: &mut Turn<'_, C>) {
        let request = Request::Execute(op);
        self.send(Call { caller, request }, turn);
    }

    // Answers and messages of the store.

    /// Handles the answer to a call. `sent` is a time before the call left, so it precedes the
    /// server's time in the answer.
    pub(super) fn answered(
        &mut self,
        call: Call<C>,
        result: Result<Reply, Error>,
        sent: Stamp,
        turn: &mut Turn<'_, C>,
    ) {
        self.calls -= 1;
        let is_claim = call.request.is_claim();
        self.claims -= usize::from(is_claim);
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return self.on_failed(call, error, turn),
        };
        let now = turn.now.instant;
        self.latest.answered(sent, reply.frame.at);
        let newer = self.latest.merge(&reply.frame, Some(sent.instant), now);
        let Call { caller, request } = call;
        // Before `apply_latest`, which would take the end of our own grant, which this very answer
        // confirms, for a loss.
        match request {
            Request::Claim { id, token, terms } => {
                let mut caller = Some(caller);
                if self.participants.on_claim_answered(id, token) {
                    self.on_claim_reply(id, token, &reply, turn);
                } else if reply.claim() != ClaimReply::Refused
                    && reply
                        .record()
                        .is_some_and(|told| Some(told.fence) > self.grants.except_fence(token))
                {
                    // No participant wants what this claim got: a grant, or a position in the
                    // queue. A record that is no newer than this token's own grant, which a push
                    // may have brought first, shows nothing to withdraw.
                    let caller = caller.take().unwrap_or_default();
                    let call = self.withdrawal(token, &terms, caller, now);
                    self.send(call, turn);
                }
                turn.release(caller);
                self.refreshed(id, turn);
            }
            Request::Renew(renew) => self.on_renewed(renew, caller, &reply, sent, turn),
            Request::Settle(settling) => self.on_settled(settling, caller, &reply, turn),
            Request::Withdraw(_) => turn.release(Some(caller)),
            Request::Read => {
                turn.release(Some(caller));
                self.on_read(turn);
            }
            Request::Execute(_) => {
                let answer = Answer::Executed(Ok(reply.clone()));
                turn.outputs.push(Output::Answer(caller, answer));
            }
        }
        if newer {
            self.apply_latest(turn);
        }
        self.show(&reply.frame, Some(sent.instant), turn);
        self.recover(is_claim, turn);
    }

    /// Handles a message. `frame` is `None` if the message is not a record.
    pub(super) fn heard(&mut self, frame: Option<RecordSnapshot>, turn: &mut Turn<'_, C>) {
        match frame {
            Some(frame) => {
                if self.latest.merge(&frame, None, turn.now.instant) {
                    self.apply_latest(turn);
                }
                self.show(&frame, None, turn);
            }
            // The answer to a request tells why the record cannot be read.
            None => self.refresh(turn),
        }
    }

    // Timers.

    /// Returns the time at which [`KeyState::fire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let retry = self.outage.as_ref().and_then(|outage| outage.retry_at);
        let deadlines = self.grants.deadline().into_iter();
        deadlines
            .chain(retry)
            .chain(self.subscription.retry_at())
            .chain(self.claim_at())
            .chain(self.read_at())
            .min()
    }

    pub(super) fn fire(&mut self, turn: &mut Turn<'_, C>) {
        let now = turn.now.instant;
        self.lapse(turn);
        self.retry(turn);
        self.retry_subscribe(turn);
        if self.claim_at().is_some_and(|at| at <= now) {
            self.refresh(turn);
        }
        if self.read_at().is_some_and(|at| at <= now) {
            self.read_for_watchers(turn);
        }
    }

    /// Withdraws the token of a participant that has left.
    fn withdraw(&mut self, participant: &ParticipantState, turn: &mut Turn<'_, C>) {
        let (token, terms) = (participant.token, &participant.terms);
        let call = self.withdrawal(token, terms, C::default(), turn.now.instant);
        self.send(call, turn);
    }

    /// Returns the call that withdraws a token with which no participant waits.
    fn withdrawal(&self, token: Token, terms: &Arc<RunConfig>, caller: C, now: Instant) -> Call<C> {
        let request = Request::Withdraw(Withdraw {
            token,
            terms: terms.clone(),
            except_fence: self.grants.except_fence(token),
            // By then, the lease of a grant under this token has ended anyway.
            retry_until: now + Duration::from_millis(terms.lease),
        });
        Call { caller, request }
    }

    fn ask(&mut self, request: Request, turn: &mut Turn<'_, C>) {
        let caller = C::default();
        self.send(Call { caller, request }, turn);
    }

    fn send(&mut self, call: Call<C>, turn: &mut Turn<'_, C>) {
        self.calls += 1;
        self.claims += usize::from(call.request.is_claim());
        turn.outputs.push(Output::Call(call));
    }
}
