//! What this process knows of one key, and what it does about it: a state machine without I/O.
//!
//! It is told of answers, messages and the time, and says which [`Effect`]s shall follow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use rand::Rng;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::message::{Ended, Id, Settlement, Update};
use super::{Grant, Lease, Terms, WeakHandle};
use crate::error::{Error, SettleError};
use crate::event::{Completed, Failed, Locked, MaxAttempts, Reason};
use crate::store::key::Key;
use crate::store::record::{Cause, Frame, Record, State, Token};
use crate::store::{Failure, Op, Outcome, Reply};

/// At the end of a lease the waiter at place p in the line claims after p of these.
const STAGGER: Duration = Duration::from_millis(5);

/// From this place on all claim together.
const STAGGER_CAP: u64 = 100;

/// The longest a settlement is tried, if the lease does not end later.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits between tries while the server does not serve: doubling, jittered.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

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
    pub(super) op: Op,
    purpose: Purpose,
}

enum Purpose {
    Claim {
        id: Id,
        token: Token,
        terms: Arc<Terms>,
    },
    Confirm {
        lease: Arc<Lease>,
        give_up: Instant,
    },
    Settle(Settling),
    Withdraw {
        give_up: Instant,
    },
}

struct Settling {
    lease: Arc<Lease>,
    reply: Option<oneshot::Sender<Result<(), SettleError>>>,
    began: Instant,
    give_up: Instant,
}

pub(super) struct Run {
    key: Key,
    /// In the order in which they joined.
    members: BTreeMap<Id, Member>,
    /// Grants of this process that are neither settled nor given back.
    grants: Vec<Live>,
    view: Option<View>,
    /// The last answer: when it was asked for, and the server's time in it.
    clock: Option<(Instant, u64)>,
    subscription: Subscription,
    /// When to subscribe again after that failed, and how long to wait the next time.
    rewatch: Option<(Instant, Duration)>,
    /// Who claims on behalf of all that wait.
    refreshing: Option<Id>,
    /// Something may have been missed since that claim was sent.
    refresh_again: bool,
    /// Whether the subscriber is known to be connected.
    hearing: bool,
    trouble: Option<Trouble>,
    /// Calls that have not come back.
    calls: usize,
}

struct Member {
    token: Token,
    terms: Arc<Terms>,
    mailbox: UnboundedSender<Update>,
    stage: Stage,
    /// Whether a claim of its is on its way.
    claiming: bool,
    /// Its place in the line as far as is known, from 0.
    place: u64,
    /// The last holder it was told of, by fencing token.
    told: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No claim has been answered yet: messages are not acted on, they may be of the last run.
    Joining,
    Waiting,
    Holding,
}

struct Live {
    lease: Arc<Lease>,
    /// Its holder has been told that it is over.
    lapsed: bool,
    /// Its end is on its way.
    settling: bool,
}

/// The newest record known.
struct View {
    record: Record,
    heard: Instant,
    /// When its `until` has surely come on our clock.
    ends: Instant,
    /// What was left of it when it was sent.
    remaining: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subscription {
    None,
    Watching,
    Active,
    Unwatching,
}

/// An outage, as far as this key is concerned.
struct Trouble {
    error: Error,
    delay: Duration,
    /// `None` while a retry is on its way.
    retry_at: Option<Instant>,
    /// Whether claims failed: then only a claim that succeeds ends it.
    claims: bool,
    parked: Vec<Call>,
}

impl Run {
    pub(super) fn new(key: Key, hearing: bool) -> Self {
        Self {
            key,
            members: BTreeMap::new(),
            grants: Vec::new(),
            view: None,
            clock: None,
            subscription: Subscription::None,
            rewatch: None,
            refreshing: None,
            refresh_again: false,
            hearing,
            trouble: None,
            calls: 0,
        }
    }

    /// Whether nothing is left to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.members.is_empty()
            && self.grants.is_empty()
            && self.calls == 0
            && self.subscription == Subscription::None
            && self.trouble.is_none()
    }

    pub(super) fn is_watched(&self) -> bool {
        matches!(
            self.subscription,
            Subscription::Watching | Subscription::Active
        )
    }

    // What participants ask.

    pub(super) fn join(
        &mut self,
        id: Id,
        terms: Arc<Terms>,
        mailbox: UnboundedSender<Update>,
        effects: &mut Vec<Effect>,
    ) {
        let member = Member {
            token: Token::random(),
            terms,
            mailbox,
            stage: Stage::Joining,
            claiming: false,
            place: 0,
            told: 0,
        };
        if let Some(trouble) = &self.trouble {
            member.tell(Update::Error(trouble.error.clone()));
        }
        self.members.insert(id, member);
        if self.trouble.as_ref().is_none_or(|trouble| !trouble.claims) {
            self.claim(id, effects);
        }
    }

    pub(super) fn leave(&mut self, id: Id, now: Instant, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        // A claim on its way is given back when its answer comes, a grant by its own drop.
        if member.stage != Stage::Holding && !member.claiming {
            let call = withdrawal(member.token, &member.terms, None, now);
            self.send(call, effects);
        }
        self.unwatch_if_idle(effects);
    }

    pub(super) fn confirm(&mut self, lease: Arc<Lease>, now: Instant, effects: &mut Vec<Effect>) {
        let op = Op::Renew {
            fence: lease.fence,
            lease: lease.terms.lease,
            checkpoint: None,
        };
        let give_up = lease.deadline().max(now + PATIENCE);
        let purpose = Purpose::Confirm { lease, give_up };
        self.send(
            Call {
                ticket: None,
                op,
                purpose,
            },
            effects,
        );
    }

    /// A grant that nobody began to work on.
    pub(super) fn give_back(&mut self, lease: &Lease, now: Instant, effects: &mut Vec<Effect>) {
        self.forget(lease.fence);
        self.members.remove(&lease.id);
        self.send(withdrawal(lease.token, &lease.terms, None, now), effects);
        self.unwatch_if_idle(effects);
    }

    pub(super) fn settle(
        &mut self,
        settlement: Settlement,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Settlement {
            lease,
            outcome,
            reply,
        } = settlement;
        for live in self
            .grants
            .iter_mut()
            .filter(|live| live.lease.fence == lease.fence)
        {
            live.settling = true;
        }
        let op = Op::Settle {
            fence: lease.fence,
            outcome,
            window: lease.terms.window(),
        };
        let settling = Settling {
            began: now,
            give_up: lease.deadline().max(now + PATIENCE),
            lease,
            reply,
        };
        let purpose = Purpose::Settle(settling);
        self.send(
            Call {
                ticket: None,
                op,
                purpose,
            },
            effects,
        );
    }

    // What the store says.

    /// `sent` is an instant before the call left: the server's clock was read later.
    pub(super) fn answered(
        &mut self,
        call: Call,
        result: Result<Reply, Error>,
        sent: Instant,
        now: Instant,
        hub: &WeakHandle,
        effects: &mut Vec<Effect>,
    ) {
        self.calls -= 1;
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return self.failed(call, error, now, effects),
        };
        self.clock = Some((sent, reply.frame.at));
        let newer = self.merge(&reply.frame, Some(sent), now);
        let Call {
            ticket,
            op,
            purpose,
        } = call;
        let is_claim = matches!(purpose, Purpose::Claim { .. });
        // Before the news spreads, so that no holder takes its own end for a loss.
        match purpose {
            Purpose::Claim { id, token, terms } => {
                if self.is_wanted(id, token) {
                    self.claimed(id, token, &reply, now, hub, effects);
                } else if reply.ok || reply.position.is_some() {
                    self.send(withdrawal(token, &terms, ticket, now), effects);
                }
                self.refreshed(id, effects);
            }
            Purpose::Confirm { lease, .. } => self.confirmed(&lease, &reply, sent),
            Purpose::Settle(settling) => self.settled(settling, &op, &reply),
            Purpose::Withdraw { .. } => {}
        }
        if newer {
            self.spread(now, hub);
        }
        self.recover(is_claim, effects);
        self.unwatch_if_idle(effects);
    }

    pub(super) fn heard(
        &mut self,
        frame: Option<Frame>,
        now: Instant,
        hub: &WeakHandle,
        effects: &mut Vec<Effect>,
    ) {
        match frame {
            Some(frame) => {
                if self.merge(&frame, None, now) {
                    self.spread(now, hub);
                }
            }
            // What cannot be read now says why when it is asked for.
            None => self.refresh(effects),
        }
        self.unwatch_if_idle(effects);
    }

    pub(super) fn watched(
        &mut self,
        result: Result<(), Error>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.calls -= 1;
        match result {
            Ok(()) => {
                self.subscription = Subscription::Active;
                self.rewatch = None;
                // The classic missed wake-up: whatever happened between the answer that sent us
                // here and the server's acknowledgement was not heard. So ask again.
                self.refresh(effects);
            }
            Err(error) => {
                self.subscription = Subscription::None;
                // No event: until it succeeds the timers do.
                let delay = self
                    .rewatch
                    .map_or(RETRY_FIRST, |(_, delay)| next_delay(delay));
                self.rewatch = Some((now + jittered(delay), delay));
                if error.is_fatal() {
                    self.end_all(&error);
                }
            }
        }
        self.unwatch_if_idle(effects);
    }

    pub(super) fn unwatched(&mut self, effects: &mut Vec<Effect>) {
        self.calls -= 1;
        self.subscription = Subscription::None;
        self.watch(effects);
    }

    /// Messages may have been missed, or it is unknown whether any come.
    pub(super) fn missed(&mut self, hearing: bool, effects: &mut Vec<Effect>) {
        self.hearing = hearing;
        self.refresh(effects);
    }

    /// The connection is back: subscribe again, then ask again.
    pub(super) fn resubscribe(&mut self, effects: &mut Vec<Effect>) {
        self.hearing = true;
        if self.is_watched() {
            self.subscription = Subscription::None;
        }
        self.watch(effects);
    }

    // What time does.

    /// When [`Run::fire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let lapses = self
            .grants
            .iter()
            .filter(|live| !live.settling)
            .map(Live::deadline);
        let retry = self.trouble.as_ref().and_then(|trouble| trouble.retry_at);
        let rewatch = self.rewatch.map(|(at, _)| at);
        lapses
            .chain(retry)
            .chain(rewatch)
            .chain(self.claim_at())
            .min()
    }

    pub(super) fn fire(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.lapse(now);
        let retry = self.trouble.as_mut().is_some_and(|trouble| {
            let due = trouble.retry_at.is_some_and(|at| at <= now);
            if due {
                trouble.retry_at = None;
            }
            due
        });
        if retry {
            self.retry(effects);
        }
        if self.rewatch.is_some_and(|(at, _)| at <= now) {
            self.rewatch = None;
            self.watch(effects);
        }
        if self.claim_at().is_some_and(|at| at <= now) {
            self.refresh(effects);
        }
        self.unwatch_if_idle(effects);
    }

    /// When the front waiter claims on its own, having heard nothing.
    fn claim_at(&self) -> Option<Instant> {
        if self.refreshing.is_some() || self.trouble.is_some() {
            return None;
        }
        let (_, front) = self.front()?;
        let view = self.view.as_ref()?;
        let begin = match view.record.state {
            State::Open => view.heard,
            _ => view.ends,
        };
        let claim = begin + front.stagger();
        let audit = view.heard + Duration::from_millis(view.record.retention / 2);
        let hearing = self.hearing && self.subscription == Subscription::Active;
        Some(if hearing { claim } else { claim.min(audit) })
    }

    fn lapse(&mut self, now: Instant) {
        let members = &self.members;
        self.grants.retain_mut(|live| {
            if live.settling || live.deadline() > now {
                return true;
            }
            let update = if live.lapsed {
                Update::Lost
            } else {
                Update::Lapsed
            };
            if let Some(member) = members.get(&live.lease.id) {
                member.tell(update);
            }
            !std::mem::replace(&mut live.lapsed, true)
        });
    }

    // Claims.

    fn claim(&mut self, id: Id, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.claiming = true;
        let op = Op::Claim {
            token: member.token,
            label: member.terms.label.clone(),
            lease: member.terms.lease,
            max_attempts: member.terms.max_attempts,
            retention: member.terms.retention,
        };
        let purpose = Purpose::Claim {
            id,
            token: member.token,
            terms: member.terms.clone(),
        };
        self.send(
            Call {
                ticket: None,
                op,
                purpose,
            },
            effects,
        );
    }

    fn is_wanted(&self, id: Id, token: Token) -> bool {
        self.members
            .get(&id)
            .is_some_and(|member| member.token == token)
    }

    fn claimed(
        &mut self,
        id: Id,
        token: Token,
        reply: &Reply,
        now: Instant,
        hub: &WeakHandle,
        effects: &mut Vec<Effect>,
    ) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.claiming = false;
        if member.stage == Stage::Joining {
            member.stage = Stage::Waiting;
        }
        if let Some(place) = reply.position {
            member.place = place;
        }
        self.bring_up_to_date(id, reply.position, now, hub);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.stage == Stage::Waiting {
            // A token gets one grant: when that was lost before anybody worked on it, a new one is
            // drawn.
            if reply.ok
                || reply
                    .record()
                    .is_some_and(|record| record.last == Some(token))
            {
                member.token = Token::random();
                self.claim(id, effects);
            }
            self.watch(effects);
        }
    }

    /// One claim for all that wait: its answer is news for every one of them.
    fn refresh(&mut self, effects: &mut Vec<Effect>) {
        if self.refreshing.is_none()
            && let Some((id, _)) = self.front()
        {
            self.refreshing = Some(id);
            self.refresh_again = false;
            self.claim(id, effects);
        } else {
            // After the answers that are on their way: they may be older than what was missed.
            self.refresh_again = self.members.values().any(|member| member.claiming);
        }
    }

    fn refreshed(&mut self, id: Id, effects: &mut Vec<Effect>) {
        if self.refreshing == Some(id) {
            self.refreshing = None;
        }
        if self.refresh_again {
            self.refresh(effects);
        }
    }

    /// Who claims first when the time comes.
    fn front(&self) -> Option<(Id, &Member)> {
        let mut waiting = self.members.iter();
        let front = waiting.find(|(_, member)| member.stage == Stage::Waiting && !member.claiming);
        front.map(|(id, member)| (*id, member))
    }

    fn send(&mut self, call: Call, effects: &mut Vec<Effect>) {
        self.calls += 1;
        effects.push(Effect::Call(call));
    }

    // News.

    /// Takes the frame for the newest if it is. Answers and messages come on two connections: only
    /// the record's own order tells which is newer.
    fn merge(&mut self, frame: &Frame, asked: Option<Instant>, now: Instant) -> bool {
        let Some(record) = &frame.record else {
            // Absence has no order. It only means that there is something to claim.
            return false;
        };
        let newer = self.view.as_ref().is_none_or(|view| {
            record.order() > view.record.order()
                // Asked for after we heard what we know, and yet older: the server lost data.
                || asked.is_some_and(|asked| asked > view.heard)
                    && record.order() < view.record.order()
        });
        if newer {
            let remaining = Duration::from_micros((record.until * 1_000).saturating_sub(frame.at));
            self.view = Some(View {
                record: record.clone(),
                heard: now,
                ends: now + remaining,
                remaining,
            });
        }
        newer
    }

    /// Tells everybody who waits, and the one whose turn it is, what the newest record means.
    fn spread(&mut self, now: Instant, hub: &WeakHandle) {
        let Some(view) = &self.view else {
            return;
        };
        let fence = view.record.fence;
        self.grants.retain(|live| {
            let lost = live.lease.fence < fence && !live.settling;
            if lost {
                live.lease.lose();
                if let Some(member) = self.members.get(&live.lease.id) {
                    member.tell(Update::Lost);
                }
            }
            !lost
        });
        // The next holder before the others: it has work to do.
        let owner = view.record.owner;
        let owner = self
            .members
            .iter()
            .find(|(_, member)| Some(member.token) == owner);
        if let Some(id) = owner.map(|(id, _)| *id) {
            self.bring_up_to_date(id, None, now, hub);
        }
        let others: Vec<Id> = self.members.keys().copied().collect();
        for id in others {
            self.bring_up_to_date(id, None, now, hub);
        }
    }

    fn bring_up_to_date(&mut self, id: Id, position: Option<u64>, now: Instant, hub: &WeakHandle) {
        let (Some(view), Some(member)) = (&self.view, self.members.get_mut(&id)) else {
            return;
        };
        if member.stage != Stage::Waiting {
            return;
        }
        let record = &view.record;
        match record.state {
            State::Held | State::Granted if record.owner == Some(member.token) => {
                // Without a handle there is no stream: its leaving is on its way.
                let Some(hub) = hub.upgrade() else {
                    return;
                };
                member.stage = Stage::Holding;
                let lease = Arc::new(lease(&self.key, id, member, view, self.clock, now));
                self.grants.push(Live {
                    lease: lease.clone(),
                    lapsed: false,
                    settling: false,
                });
                member.tell(Update::Granted(Grant {
                    lease,
                    handed_over: record.state == State::Granted,
                    given: false,
                    hub,
                }));
            }
            State::Held | State::Granted => {
                if member.told != record.fence {
                    if member.told != 0 {
                        member.place = member.place.saturating_sub(1);
                    }
                    member.told = record.fence;
                    member.tell(Update::Locked(Locked {
                        attempt: record.attempt,
                        max_attempts: record.max_attempts,
                        holder: record.holder.clone(),
                        remaining: view.remaining,
                        position,
                    }));
                }
            }
            State::Open => {}
            State::Done | State::Exhausted => {
                member.tell(Update::Ended(match record.state {
                    State::Done => Ended::Completed(completed(record)),
                    _ => Ended::MaxAttempts(given_up(record)),
                }));
                self.members.remove(&id);
            }
        }
    }

    // Grants.

    fn confirmed(&mut self, lease: &Lease, reply: &Reply, sent: Instant) {
        let stands = reply.record().filter(|_| reply.ok);
        if let Some(record) = stands {
            lease.restart(local_end(record, (sent, reply.frame.at)));
            for live in self
                .grants
                .iter_mut()
                .filter(|live| live.lease.fence == lease.fence)
            {
                live.lapsed = false;
            }
            if let Some(member) = self.members.get(&lease.id) {
                member.tell(Update::Confirmed);
            }
        } else {
            self.lose(lease);
        }
    }

    /// Somebody else has it, unless it is being settled: then that answer tells.
    fn lose(&mut self, lease: &Lease) {
        let mine = |live: &Live| live.lease.fence == lease.fence && !live.settling;
        if self.grants.iter().any(mine) {
            lease.lose();
            self.forget(lease.fence);
            if let Some(member) = self.members.get(&lease.id) {
                member.tell(Update::Lost);
            }
        }
    }

    fn settled(&mut self, settling: Settling, op: &Op, reply: &Reply) {
        let Op::Settle { outcome, .. } = op else {
            return;
        };
        let lease = &settling.lease;
        let (result, ended) = match reply.record() {
            Some(record) if reply.ok || was_settled(record, lease, outcome) => {
                (Ok(()), ended(record, lease, outcome))
            }
            record => {
                let lost = SettleError::Lost {
                    attempt: lease.attempt,
                    holder: record
                        .map(|record| record.holder.clone())
                        .filter(|h| !h.is_empty()),
                    successor: record.map(|record| record.attempt),
                };
                let reason = match record {
                    Some(_) => Reason::Expired,
                    None => Reason::Lost,
                };
                (Err(lost), failed(lease, reason))
            }
        };
        self.end(settling, result, Update::Settled(ended));
    }

    /// The last that is heard of a grant.
    fn end(&mut self, settling: Settling, result: Result<(), SettleError>, update: Update) {
        settling.lease.lose();
        self.forget(settling.lease.fence);
        // Its stream before its guard: whoever has awaited the guard finds the end in the stream.
        if let Some(member) = self.members.remove(&settling.lease.id) {
            member.tell(update);
        }
        if let Some(reply) = settling.reply {
            let _ = reply.send(result);
        }
    }

    fn forget(&mut self, fence: u64) {
        self.grants.retain(|live| live.lease.fence != fence);
    }

    // Subscriptions.

    /// Subscribes, if anybody waits and it has not been done.
    fn watch(&mut self, effects: &mut Vec<Effect>) {
        let waits = |member: &Member| member.stage == Stage::Waiting;
        if self.subscription == Subscription::None
            && self.rewatch.is_none()
            && self.members.values().any(waits)
        {
            self.subscription = Subscription::Watching;
            self.calls += 1;
            effects.push(Effect::Watch);
        }
    }

    fn unwatch_if_idle(&mut self, effects: &mut Vec<Effect>) {
        if !self.members.is_empty() {
            return;
        }
        self.rewatch = None;
        if self.subscription == Subscription::Active {
            self.subscription = Subscription::Unwatching;
            self.calls += 1;
            effects.push(Effect::Unwatch);
        }
    }

    // Trouble.

    fn failed(&mut self, call: Call, error: Error, now: Instant, effects: &mut Vec<Effect>) {
        let is_claim = matches!(call.purpose, Purpose::Claim { .. });
        let fatal = error.is_fatal();
        let Call {
            ticket,
            op,
            purpose,
        } = call;
        let parked = match purpose {
            Purpose::Claim { id, token, terms } => {
                if self.refreshing == Some(id) {
                    self.refreshing = None;
                }
                match self.members.get_mut(&id) {
                    Some(member) if member.token == token => {
                        member.claiming = false;
                        None
                    }
                    // Nobody wants the answer, and it may have been a grant.
                    _ => Some(withdrawal(token, &terms, ticket, now)),
                }
            }
            Purpose::Settle(settling) if fatal => {
                let update = Update::Error(error.clone());
                self.end(settling, Err(SettleError::Refused(error.clone())), update);
                None
            }
            Purpose::Settle(settling) if now >= settling.give_up => {
                let unknown = SettleError::Unknown {
                    waited: now - settling.began,
                    source: error.clone(),
                };
                let ended = failed(&settling.lease, Reason::Unknown);
                self.end(settling, Err(unknown), Update::Settled(ended));
                None
            }
            Purpose::Confirm { lease, give_up } if fatal || now >= give_up => {
                self.lose(&lease);
                None
            }
            Purpose::Withdraw { give_up } if fatal || now >= give_up => None,
            purpose => Some(Call {
                ticket,
                op,
                purpose,
            }),
        };
        self.trouble_with(error, is_claim, now);
        if let (Some(trouble), Some(parked)) = (&mut self.trouble, parked) {
            trouble.parked.push(parked);
        }
        self.unwatch_if_idle(effects);
    }

    fn trouble_with(&mut self, error: Error, claims: bool, now: Instant) {
        if error.is_fatal() {
            if claims {
                self.end_all(&error);
            }
            return;
        }
        match &mut self.trouble {
            Some(trouble) => {
                trouble.claims |= claims;
                if trouble.retry_at.is_none() {
                    trouble.delay = next_delay(trouble.delay);
                    trouble.retry_at = Some(now + jittered(trouble.delay));
                }
            }
            None => {
                // One event an outage.
                for member in self.members.values() {
                    member.tell(Update::Error(error.clone()));
                }
                self.trouble = Some(Trouble {
                    error,
                    delay: RETRY_FIRST,
                    retry_at: Some(now + jittered(RETRY_FIRST)),
                    claims,
                    parked: Vec::new(),
                });
            }
        }
    }

    /// The server refuses this key to everybody who wants it.
    fn end_all(&mut self, error: &Error) {
        self.members.retain(|_, member| {
            let ends = member.stage != Stage::Holding;
            if ends {
                member.tell(Update::Error(error.clone()));
            }
            !ends
        });
    }

    /// Sends again what has waited, and one claim to see whether the server serves.
    fn retry(&mut self, effects: &mut Vec<Effect>) {
        self.send_parked(effects);
        let joining = self.members.iter().find(|(_, member)| !member.is_served());
        if let Some(id) = joining.map(|(id, _)| *id) {
            self.claim(id, effects);
        } else {
            self.refresh(effects);
        }
        let claims = self.members.values().any(|member| member.claiming);
        match &mut self.trouble {
            Some(trouble) if claims || !effects.is_empty() => trouble.claims &= claims,
            trouble => *trouble = None,
        }
    }

    /// An answer came: if that ends the outage, everybody who was turned away asks again.
    fn recover(&mut self, is_claim: bool, effects: &mut Vec<Effect>) {
        if self
            .trouble
            .as_ref()
            .is_none_or(|trouble| trouble.claims && !is_claim)
        {
            return;
        }
        self.send_parked(effects);
        self.trouble = None;
        let joining = self
            .members
            .iter()
            .filter(|(_, member)| !member.is_served());
        for id in joining.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.claim(id, effects);
        }
        self.watch(effects);
        self.refresh(effects);
    }

    fn send_parked(&mut self, effects: &mut Vec<Effect>) {
        let parked = self
            .trouble
            .as_mut()
            .map(|trouble| std::mem::take(&mut trouble.parked));
        for call in parked.into_iter().flatten() {
            self.send(call, effects);
        }
    }
}

impl Member {
    /// A stream that has gone needs no news: its leaving is on its way.
    fn tell(&self, update: Update) {
        let _ = self.mailbox.unbounded_send(update);
    }

    /// Whether it has been answered, or is about to be.
    fn is_served(&self) -> bool {
        self.stage != Stage::Joining || self.claiming
    }

    /// How long after the others' claims its own is due: at once for the first in the line.
    fn stagger(&self) -> Duration {
        let place = self.place.min(STAGGER_CAP) as u32;
        if place == 0 {
            return Duration::ZERO;
        }
        // Stable for one token, so that asking twice gives one answer.
        STAGGER * place + STAGGER.mul_f64(self.token.fraction())
    }
}

impl Live {
    /// When its holder is to be told that it is over, and then that nothing is left of it.
    fn deadline(&self) -> Instant {
        let lease = self.lease.deadline();
        match self.lapsed {
            false => lease,
            true => lease + Duration::from_millis(self.lease.terms.retention),
        }
    }
}

fn lease(
    key: &Key,
    id: Id,
    member: &Member,
    view: &View,
    clock: Option<(Instant, u64)>,
    now: Instant,
) -> Lease {
    let record = &view.record;
    let deadline = clock.map_or(now, |clock| local_end(record, clock));
    // A message may have been late: what it says is left was left when it was sent.
    let deadline = deadline.min(view.ends);
    let lease = Lease {
        key: key.clone(),
        attempt: record.attempt,
        max_attempts: record.max_attempts,
        fence: record.fence,
        token: member.token,
        terms: member.terms.clone(),
        id,
        began: now,
        ends: std::sync::atomic::AtomicU64::new(1),
    };
    lease.restart(deadline);
    lease
}

/// When the record's lease is over for its holder, by our clock: counted from before the answer
/// that told us the server's time was asked for, less what two clocks may drift apart until then.
///
/// The margin is 2 ‰ and 1 ms: twice the 500 ppm by which NTP may slew each of two clocks, and the
/// grain of the server's expiry.
fn local_end(record: &Record, (sent, at): (Instant, u64)) -> Instant {
    let left = Duration::from_micros((record.until * 1_000).saturating_sub(at));
    let margin = left / 500 + Duration::from_millis(1);
    sent + left.saturating_sub(margin)
}

/// Leaving, in the name of a token that nobody works with.
fn withdrawal(token: Token, terms: &Terms, ticket: Option<TaskTrackerToken>, now: Instant) -> Call {
    let op = Op::Withdraw {
        token,
        label: terms.label.clone(),
        window: terms.window(),
    };
    // Later than that its grant has ended anyway.
    let give_up = now + Duration::from_millis(terms.lease);
    let purpose = Purpose::Withdraw { give_up };
    Call {
        ticket,
        op,
        purpose,
    }
}

/// Whether a settlement that is refused now took place before, its answer being lost.
fn was_settled(record: &Record, lease: &Lease, outcome: &Outcome) -> bool {
    let cause = match outcome {
        Outcome::Done(_) => return false,
        Outcome::HandOff => Cause::HandedOver,
        Outcome::Fail(Failure::Dropped) => Cause::Dropped,
        Outcome::Fail(Failure::Panicked) => Cause::Panicked,
        Outcome::Fail(Failure::Reason(_)) | Outcome::FailPermanently(_) => Cause::Failed,
    };
    let previous = record.previous.as_ref();
    record.last == Some(lease.token)
        && previous.is_some_and(|previous| previous.cause == cause)
        && previous.is_some_and(|previous| previous.attempt == lease.attempt)
}

/// How a participation ends whose grant was settled.
fn ended(record: &Record, lease: &Lease, outcome: &Outcome) -> Ended {
    match outcome {
        Outcome::Done(_) => Ended::Completed(completed(record)),
        _ if record.state == State::Exhausted => Ended::MaxAttempts(given_up(record)),
        Outcome::HandOff => failed(lease, Reason::HandedOver),
        Outcome::Fail(Failure::Dropped) => failed(lease, Reason::Dropped),
        Outcome::Fail(Failure::Panicked) => failed(lease, Reason::Panicked),
        Outcome::Fail(Failure::Reason(text)) | Outcome::FailPermanently(text) => {
            failed(lease, Reason::Failed(text.clone()))
        }
    }
}

fn failed(lease: &Lease, reason: Reason) -> Ended {
    Ended::Failed(Failed {
        attempt: lease.attempt,
        reason,
    })
}

fn completed(record: &Record) -> Completed {
    Completed {
        holder: record.holder.clone(),
        attempt: record.attempt,
        result: record.result.clone(),
    }
}

fn given_up(record: &Record) -> MaxAttempts {
    let previous = record.previous.as_ref();
    MaxAttempts {
        attempts: record.attempt,
        holder: previous.map_or_else(String::new, |previous| previous.holder.clone()),
        reason: previous.map_or(Reason::Lost, Reason::from),
    }
}

fn next_delay(delay: Duration) -> Duration {
    (2 * delay).min(RETRY_LAST)
}

/// From half the delay to all of it, so that a fleet does not come back in step.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::thread_rng().gen_range(0.5..=1.0))
}
