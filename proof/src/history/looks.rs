//! Invariants 6 and 12: the validity of guards, as the samplers of their processes read it.

use std::collections::BTreeMap;

use super::{Checker, Look, Name};

/// The time in which a guard was certainly valid: from after its first valid reading to before its
/// last. The exact instant of a single reading is unknown.
struct Span<'a> {
    guard: Name<'a>,
    first: &'a Look,
    last: &'a Look,
}

impl Span<'_> {
    fn overlaps(&self, other: &Self) -> bool {
        self.first.after <= other.last.before && other.first.after <= self.last.before
    }
}

impl<'a> Checker<'a> {
    pub(super) fn looks(&mut self) {
        let mut guards: BTreeMap<Name<'a>, Vec<&'a Look>> = BTreeMap::new();
        for look in &self.history.looks {
            let name = (&look.key[..], look.fence);
            guards.entry(name).or_default().push(look);
        }
        let mut keys: BTreeMap<&str, Vec<Span<'_>>> = BTreeMap::new();
        for (guard, looks) in guards {
            self.stays_invalid(&looks);
            let mut valid = looks.iter().filter(|look| look.valid);
            let Some(first) = valid.next() else { continue };
            let last = valid.next_back().unwrap_or(first);
            // If the server had made no other grant by the last reading, it had made none by an
            // earlier one.
            self.valid(guard, last.at, last);
            keys.entry(guard.0)
                .or_default()
                .push(Span { guard, first, last });
        }
        for spans in keys.into_values() {
            self.one_at_a_time(spans);
        }
    }

    /// 12: a guard that has said that it is not valid stays invalid.
    fn stays_invalid(&mut self, looks: &[&Look]) {
        let Some(invalid) = looks.iter().find(|look| !look.valid) else {
            return;
        };
        self.examines(12);
        let mut valid = looks.iter().filter(|look| look.valid);
        if let Some(again) = valid.find(|look| look.before >= invalid.after) {
            self.violates(12, format_args!("{invalid:?}, then {again:?}"));
        }
    }

    /// 12: the guards of a key are valid one after the other.
    fn one_at_a_time(&mut self, mut spans: Vec<Span<'a>>) {
        spans.sort_by_key(|span| span.first.after);
        for (nth, span) in spans.iter().enumerate() {
            let others = &spans[nth + 1..];
            if !others.is_empty() {
                self.examines(12);
            }
            // The spans are sorted, so none after the first that begins too late can overlap.
            let at_once = others
                .iter()
                .take_while(|other| other.first.after <= span.last.before);
            for other in at_once.filter(|other| span.overlaps(other)) {
                if !self.forgot_between(span.guard, other.guard) {
                    let [from, to] = [span.last, other.last];
                    let text =
                        format_args!("{:?} to {from:?}, {:?} to {to:?}", span.first, other.first);
                    self.violates(12, text);
                }
            }
        }
    }

    /// Whether the server may have forgotten the first of two grants before it made the second.
    fn forgot_between(&self, one: Name<'_>, other: Name<'_>) -> bool {
        // A grant that the auditor missed was made at the time of its token, or little later.
        let began = |guard: Name<'_>| {
            let grant = self.grants.get(&guard);
            grant.map_or(guard.1, |grant| grant.began)
        };
        let (one_began, other_began) = (began(one), began(other));
        let (from, to) = (one_began.min(other_began), one_began.max(other_began));
        self.forgot(one.0, from, to)
    }
}
