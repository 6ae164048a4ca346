//! What a participant asks for.

use std::sync::Arc;
use std::time::Duration;

/// How long a waiter has to confirm a grant that was handed to it, if its lease is not shorter.
const CONFIRM_WINDOW: Duration = Duration::from_millis(500);

/// What a participant asks for.
#[derive(Debug)]
pub(crate) struct RunConfig {
    /// The lease, in whole ms.
    pub(crate) lease: u64,
    pub(crate) max_attempts: u32,
    /// In whole ms.
    pub(crate) retention: u64,
    pub(crate) label: Arc<str>,
    /// How long before a lease ends on the server it ends for its holder; see [`RunConfig::margin_of`].
    pub(crate) margin: Duration,
    /// How often the lease of a guard that is in use is restarted, if at all.
    pub(crate) renew_every: Option<Duration>,
    /// How long renewals keep a grant at most.
    pub(crate) max_hold: Duration,
    /// How long the worker's runtime may not run before its leases are renewed no longer.
    pub(crate) stall_limit: Duration,
    /// Whether a grant counts only once replicas have acknowledged it.
    pub(crate) replicated: bool,
}

impl RunConfig {
    /// How long a successor has to confirm, in ms.
    pub(crate) fn window(&self) -> u64 {
        self.lease.min(CONFIRM_WINDOW.as_millis() as u64)
    }

    /// How long before the server's end a term of this length ends for its holder: a share of the
    /// margin, as large as the term is of a whole lease. At least 1 % of the term and 3 ms: the
    /// drift that [Redlock] allows for; the grain of the server's expiry, 1 ms; and that of the
    /// timer that tells the holder, 2 ms, since the queue of timers and Tokio's own each round up
    /// to the next.
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
        // One that was extended has no more than a lease.
        assert_eq!(margin_of(1_000, 60_000), 1_000);
        assert_eq!(margin_of(1_000, 300_000), 3_003);
        assert_eq!(margin_of(0, 10_000), 103);
    }
}
