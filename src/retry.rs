//! Waits between tries while the server does not serve: doubling, jittered.

use std::time::Duration;

use rand::Rng;

pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

pub(crate) fn next_delay(delay: Duration) -> Duration {
    (2 * delay).min(RETRY_LAST)
}

/// From half the delay to all of it, so that a fleet does not come back in step.
pub(crate) fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::thread_rng().gen_range(0.5..=1.0))
}
