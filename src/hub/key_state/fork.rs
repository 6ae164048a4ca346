//! Independent copies of a machine, for the model, which tries every order of events.

use std::sync::Arc;

use super::{Call, KeyState, Request};
use crate::clock::Clock;
use crate::lease::Lease;
use crate::protocol::record::{Record, State};

/// The copies of leases. A machine, its requests and its guard share a lease, so they must share
/// its copy, too.
pub(in crate::hub) struct Forks {
    clock: Clock,
    made: Vec<(Arc<Lease>, Arc<Lease>)>,
}

impl Forks {
    pub(in crate::hub) fn new(clock: Clock) -> Self {
        let made = Vec::new();
        Self { clock, made }
    }

    /// Returns the copy of this lease. The first call makes it.
    pub(in crate::hub) fn of(&mut self, lease: &Arc<Lease>) -> Arc<Lease> {
        let mut made = self.made.iter();
        if let Some((_, copy)) = made.find(|(of, _)| Arc::ptr_eq(of, lease)) {
            return copy.clone();
        }
        let copy = Arc::new(lease.fork(self.clock));
        self.made.push((lease.clone(), copy.clone()));
        copy
    }
}

impl<C: Clone> Call<C> {
    pub(in crate::hub) fn fork(&self, forks: &mut Forks) -> Self {
        let mut call = self.clone();
        match &mut call.request {
            Request::Renew(renew) => renew.lease = forks.of(&renew.lease),
            Request::Settle(settling) => settling.lease = forks.of(&settling.lease),
            Request::Claim { .. } | Request::Withdraw(_) | Request::Read | Request::Execute(_) => {}
        }
        call
    }
}

impl<C: Clone> KeyState<C> {
    pub(in crate::hub) fn fork(&self, forks: &mut Forks) -> Self {
        Self {
            key: self.key.clone(),
            participants: self.participants.clone(),
            watchers: self.watchers.clone(),
            grants: self.grants.fork(forks),
            latest: self.latest.clone(),
            subscription: self.subscription.clone(),
            refreshing: self.refreshing,
            refresh_again: self.refresh_again,
            deferred: self.deferred,
            outage: self.outage.as_ref().map(|outage| outage.fork(forks)),
            renewals_fail: self.renewals_fail.clone(),
            calls: self.calls,
            claims: self.claims,
        }
    }

    /// Whether no request is in flight or parked.
    pub(in crate::hub) fn is_quiet(&self) -> bool {
        self.calls == 0 && self.outage.is_none()
    }

    /// Whether this process knows no record, or only an older one than this.
    pub(in crate::hub) fn is_older_than(&self, record: &Record) -> bool {
        let known = self.latest.known();
        known.is_none_or(|known| known.record.order() < record.order())
    }

    /// Whether this process has this record's grant, or a participant with its token.
    pub(in crate::hub) fn wants(&self, record: &Record) -> bool {
        let is_ours = |token| self.participants.with_token(token).is_some();
        self.grants.has(record.fence) || record.owner.is_some_and(is_ours)
    }

    /// Whether the record grants the key to a participant that does not have the grant yet.
    pub(in crate::hub) fn is_owed(&self, record: &Record) -> bool {
        let owed = |token| {
            let id = self.participants.with_token(token);
            id.is_some() && !self.grants.has(record.fence)
        };
        record.state != State::Open && record.owner.is_some_and(owed)
    }
}
