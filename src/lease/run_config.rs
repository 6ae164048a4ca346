//! The options of a participant.

use std::sync::Arc;
use std::time::Duration;

/// The time that a waiter has to confirm a grant that was pushed to it. A shorter lease shortens
/// it.
const CONFIRM_WINDOW: Duration = Duration::from_millis(500);

/// The options of a participant.
#[derive(Debug, Hash)]
pub(crate) struct RunConfig {
    /// The lease, in whole ms.
    pub(crate) lease: u64,
    pub(crate) max_attempts: u32,
    /// The retention, in whole ms.
    pub(crate) retention: u64,
    pub(crate) label: Arc<str>,
    /// The margin of a whole lease, by which the lease ends for its holder before it ends on the
    /// server. See [`RunConfig::margin_of`].
    pub(crate) margin: Duration,
    /// The period at which the lease of a guard in use is renewed, if at all.
    pub(crate) renew_every: Option<Duration>,
    /// The longest time for which renewals keep a grant.
    pub(crate) max_hold: Duration,
    /// The time without a sign of life of the worker's runtime after which its leases are no longer
    /// renewed.
    pub(crate) stall_limit: Duration,
    /// Whether a grant counts only once replicas have acknowledged it.
    pub(crate) replicated: bool,
}

impl RunConfig {
    /// Returns the time that a successor has to confirm a grant, in ms.
    pub(crate) fn window(&self) -> u64 {
        self.lease.min(CONFIRM_WINDOW.as_millis() as u64)
    }

    /// Returns by how much a term of this length ends for its holder before it ends on the server.
    /// For a term shorter than a whole lease this is a proportional share of the margin. It is at
    /// least 1 % of the term plus 3 ms: 1 % is the clock drift that [Redlock] allows for, 1 ms is
    /// the resolution of the server's expiry, and 2 ms is that of the timer that tells the holder.
    /// The timer queue and Tokio's own timer each round up to the next ms.
    ///
    /// [Redlock]: https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/
    pub(crate) fn margin_of(&self, term: Duration) -> Duration {
        let lease = Duration::from_millis(self.lease);
        let share = match term < lease {
            true => self
                .margin
                .mul_f64(term.as_secs_f64() / lease.as_secs_f64()),
            false => self.margin,
        };
        share.max(term / 100 + Duration::from_millis(3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_a_share_of_the_term_and_never_less_than_clocks_may_differ() {
        let margin_of = |margin, term| {
            let terms = RunConfig {
                lease: 10_000,
                max_attempts: 1,
                retention: 1,
                label: "a".into(),
                margin: Duration::from_millis(margin),
                renew_every: None,
                max_hold: Duration::MAX,
                stall_limit: Duration::MAX,
                replicated: false,
            };
            terms.margin_of(Duration::from_millis(term)).as_millis()
        };
        assert_eq!(margin_of(1_000, 10_000), 1_000);
        assert_eq!(margin_of(1_000, 500), 50);
        // An extended lease has the margin of one whole lease.
        assert_eq!(margin_of(1_000, 60_000), 1_000);
        assert_eq!(margin_of(1_000, 300_000), 3_003);
        assert_eq!(margin_of(0, 10_000), 103);
    }
}
