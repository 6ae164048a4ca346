//! The delays between tries while the server does not answer. They double, with jitter.

use std::time::Duration;

use rand::Rng;

pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

pub(crate) fn next_delay(delay: Duration) -> Duration {
    (2 * delay).min(RETRY_LAST)
}

/// Returns from half the delay to the whole, so that a fleet does not retry in step.
pub(crate) fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::thread_rng().gen_range(0.5..=1.0))
}
