//! At most one request in flight, and one more after it if another was wanted meanwhile.

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct SingleFlight {
    in_flight: bool,
    again: bool,
}

impl SingleFlight {
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Returns whether to send the request now. If one is in flight, another follows it, because
    /// the answer in flight may be too old for the caller.
    pub(super) fn start(&mut self) -> bool {
        self.again = self.in_flight;
        !std::mem::replace(&mut self.in_flight, true)
    }

    /// Returns whether another request must follow.
    pub(super) fn on_answered(&mut self) -> bool {
        self.in_flight = false;
        std::mem::take(&mut self.again)
    }

    pub(super) fn on_failed(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_come_meanwhile_are_one_more() {
        let mut flight = SingleFlight::default();
        assert!(flight.start());
        assert!(!flight.start());
        assert!(!flight.start());
        assert!(flight.on_answered());
        assert!(flight.start());
        assert!(!flight.on_answered());
        assert!(!flight.is_in_flight());
    }

    #[test]
    fn a_failure_is_not_followed_by_another() {
        let mut flight = SingleFlight::default();
        flight.start();
        flight.start();
        flight.on_failed();
        assert!(flight.start());
        assert!(!flight.on_answered());
    }
}
