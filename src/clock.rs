//! The clock of leases on this machine.
//!
//! Tokio's timers and [`std::time::Instant`] stop while a Linux machine sleeps. The server's clock
//! does not. So a lease from a server goes by `CLOCK_BOOTTIME`, which includes sleep. Other systems
//! use the monotonic clock, which includes sleep on macOS but may not elsewhere.
//!
//! A pause of a virtual machine stops all of these clocks. The wall clock is corrected when the
//! machine resumes. A wall clock that has outrun the clock of the lease therefore shows such a
//! pause; see [`Clock::wall_lead`].

use std::time::Duration;

use tokio::time::Instant;

/// The source of time for leases.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// This machine's clock, for runs on a server.
    Machine,
    /// Tokio's clock since this instant, for runs in memory, where tests pause it.
    Tokio(Instant),
    /// A clock that stands still, for the model, which makes time go by itself.
    Stopped(Moment),
}

/// An instant of a [`Clock`], counted from the start of that clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(Duration);

/// One instant, by each of the clocks that a lease needs.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Stamp {
    /// The instant of Tokio's timers.
    pub(crate) instant: Instant,
    pub(crate) moment: Moment,
    /// See [`Clock::wall_lead`].
    pub(crate) wall_lead: i64,
}

impl Clock {
    /// Returns Tokio's clock, starting now.
    pub(crate) fn tokio() -> Self {
        Self::Tokio(Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        match self {
            Self::Machine => Moment(machine()),
            Self::Tokio(began) => Moment(began.elapsed()),
            Self::Stopped(at) => at,
        }
    }

    /// Returns by how many µs the wall clock is ahead of this clock. The number stays the same
    /// while both run. It grows when a paused virtual machine resumes and when the wall clock is
    /// set forward.
    pub(crate) fn wall_lead(self) -> i64 {
        self.read().1
    }

    /// Returns the time, and the lead of the wall clock at that time.
    pub(crate) fn read(self) -> (Moment, i64) {
        let now = self.now();
        let lead = match self {
            Self::Machine => {
                // A wall clock before 1970 counts as 1970.
                let wall = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
                micros(wall).saturating_sub(micros(now.0))
            }
            Self::Tokio(_) | Self::Stopped(_) => 0,
        };
        (now, lead)
    }

    pub(crate) fn stamp(self) -> Stamp {
        let (moment, wall_lead) = self.read();
        Stamp {
            instant: Instant::now(),
            moment,
            wall_lead,
        }
    }

    /// Whether this clock runs on while Tokio's timers stand still.
    pub(crate) fn outlives_timers(self) -> bool {
        matches!(self, Self::Machine)
    }
}

impl Moment {
    /// Returns the instant at this time after the start of a clock.
    pub(crate) fn after(time: Duration) -> Self {
        Self(time)
    }

    pub(crate) fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub(crate) fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    /// Saturates. No bound of ours comes near the maximum.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(unix)]
fn machine() -> Duration {
    use nix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

    clock_gettime(CLOCK)
        .expect("a clock that every supported system has")
        .into()
}

#[cfg(not(unix))]
fn machine() -> Duration {
    use std::sync::OnceLock;

    static BEGAN: OnceLock<std::time::Instant> = OnceLock::new();
    BEGAN.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clock_moves_with_tokios() {
        let (before, began) = (Clock::Machine.now(), Instant::now());
        while began.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert!(Clock::Machine.now().saturating_since(before) >= Duration::from_millis(2));
    }

    #[test]
    fn the_wall_clock_keeps_its_lead() {
        let lead = Clock::Machine.wall_lead();
        let later = Clock::Machine.wall_lead();
        // The two readings are not at the same time, and a clock may be slewed meanwhile.
        assert!((later - lead).abs() < 1_000_000, "{lead} {later}");
    }

    #[tokio::test(start_paused = true)]
    async fn tokios_clock_stands_still_with_it() {
        let clock = Clock::tokio();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(clock.now().saturating_since(before), Duration::from_secs(3));
    }
}
