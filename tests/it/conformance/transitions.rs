//! Every row of the protocol's table, operation by operation.

use bytes::Bytes;
use futures::StreamExt;
use redis_locking_worker::Key;
use redis_locking_worker::internals::{
    Cause, Failure, Op, Outcome, Previous, Record, Reply, State, Store, StoreEvent,
};

use testkit::bench::*;

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name(super::MemoryBench::default()).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::RedisBench::new(1_763_900_000_000_000).await).await;
            })*
        }
    };
}

on_both!(
    a_claim_on_an_absent_key_holds_attempt_1,
    a_claim_sent_again_is_the_same_grant_and_its_lease_goes_on,
    a_claim_on_a_held_key_joins_the_line_once,
    a_claim_after_the_lease_is_the_next_attempt,
    a_claim_after_the_last_lease_gives_up,
    a_claim_on_an_open_key_is_the_next_attempt,
    a_claim_by_the_grantee_confirms_and_restarts_the_lease,
    a_claim_after_the_confirm_window_reuses_the_number,
    a_claim_on_an_outcome_changes_nothing,
    a_claim_by_the_owner_before_is_refused,
    an_acquirer_leaves_the_line,
    done_ends_the_run_and_is_remembered_for_the_retention,
    done_counts_past_the_lease_if_nobody_took_over,
    done_counts_before_the_grant_was_confirmed,
    a_failure_is_handed_to_the_head_of_the_line,
    a_failure_without_waiters_leaves_the_key_open,
    the_last_failure_exhausts_the_run,
    a_permanent_failure_exhausts_the_run_at_any_attempt,
    a_hand_off_is_not_counted_and_keeps_the_checkpoint,
    a_hand_off_without_waiters_opens_the_attempt_again,
    a_renewal_restarts_the_lease_and_keeps_what_it_is_given,
    a_withdrawal_leaves_the_line,
    a_withdrawal_passes_an_unused_grant_on,
    a_withdrawal_leaves_a_grant_that_was_worked_on,
    what_is_not_this_grant_is_lost_and_unchanged,
    what_is_absent_is_lost,
    a_clear_begins_a_run_anew_in_every_state,
    what_was_cleared_comes_too_late,
    the_run_follows_its_first_claim,
    fencing_tokens_rise_across_runs_and_lost_records,
    every_change_is_heard_and_nothing_else,
    inspecting_changes_nothing,
);

fn key() -> Key {
    Key::new("job").unwrap()
}

fn record(reply: &Reply) -> &Record {
    reply.record().expect("a record")
}

/// State, attempt and owner: what the table speaks of.
fn state(reply: &Reply) -> (State, u32, Option<u128>) {
    let record = record(reply);
    let owner = (0..10).find(|n| Some(token(*n)) == record.owner);
    assert_eq!(owner.is_some(), record.owner.is_some());
    (record.state, record.attempt, owner)
}

fn fail() -> Outcome {
    Outcome::Fail(Failure::Reason("no luck".to_owned()))
}

fn previous(attempt: u32, cause: Cause, number: u128, reason: &str) -> Option<Previous> {
    Some(Previous {
        attempt,
        cause,
        holder: label(number).to_string(),
        reason: reason.to_owned(),
    })
}

/// Worker 1 holds attempt 1, and these wait in this order; the answer is its fencing token.
async fn held(bench: &mut impl Bench, waiting: &[u128]) -> u64 {
    let reply = bench.apply(&key(), &claim(1)).await;
    for number in waiting {
        bench.apply(&key(), &claim(*number)).await;
    }
    record(&reply).fence
}

async fn a_claim_on_an_absent_key_holds_attempt_1(mut bench: impl Bench) {
    let reply = bench.apply(&key(), &claim(1)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Held, 1, Some(1)));
    let record = record(&reply);
    assert_eq!(record.until, reply.frame.at / 1_000 + LEASE);
    assert_eq!((record.max_attempts, record.retention), (3, RETENTION));
    assert_eq!(
        (record.holder.as_str(), &record.previous),
        ("worker-1", &None)
    );
    assert!(record.fence >= reply.frame.at);
    let (life, line) = bench.life(&key()).await.unwrap();
    assert!(
        life <= LEASE + RETENTION && life > LEASE + RETENTION - 1_000,
        "{life}"
    );
    assert_eq!(line, 0);
}

async fn a_claim_sent_again_is_the_same_grant_and_its_lease_goes_on(mut bench: impl Bench) {
    let first = bench.apply(&key(), &claim(1)).await;
    bench.pass(1_000).await;
    let again = bench.apply(&key(), &claim(1)).await;
    assert!(again.ok);
    assert_eq!(again.frame.record, first.frame.record);
    // Even past its end, as long as nobody took over.
    bench.pass(LEASE).await;
    let again = bench.apply(&key(), &claim(1)).await;
    assert!(again.ok);
    assert_eq!(again.frame.record, first.frame.record);
}

async fn a_claim_on_a_held_key_joins_the_line_once(mut bench: impl Bench) {
    let first = bench.apply(&key(), &claim(1)).await;
    for (number, position) in [(2, 0), (3, 1), (2, 0), (4, 2), (3, 1)] {
        let reply = bench.apply(&key(), &claim(number)).await;
        assert!(!reply.ok);
        assert_eq!(reply.frame.record, first.frame.record);
        assert_eq!(reply.position, Some(position), "worker {number}");
    }
    assert_eq!(bench.life(&key()).await.unwrap().1, 3);
}

async fn a_claim_after_the_lease_is_the_next_attempt(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    bench.pass(LEASE - 1).await;
    assert!(!bench.apply(&key(), &claim(2)).await.ok);
    bench.pass(1).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Held, 2, Some(2)));
    assert!(record(&reply).fence > fence);
    assert_eq!(record(&reply).previous, previous(1, Cause::Expired, 1, ""));
}

async fn a_claim_after_the_last_lease_gives_up(mut bench: impl Bench) {
    bench.apply(&key(), &claim_with(1, 1, RETENTION)).await;
    bench.apply(&key(), &claim(2)).await;
    bench.pass(LEASE).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert!(!reply.ok);
    assert_eq!(state(&reply), (State::GaveUp, 1, None));
    assert_eq!(record(&reply).previous, previous(1, Cause::Expired, 1, ""));
    assert_eq!(record(&reply).until, reply.frame.at / 1_000 + RETENTION);
    assert_eq!(
        bench.life(&key()).await.unwrap().1,
        0,
        "nobody waits for it"
    );
}

async fn a_claim_on_an_open_key_is_the_next_attempt(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    bench.apply(&key(), &settle(fence, fail())).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Held, 2, Some(2)));
    assert_eq!(
        record(&reply).previous,
        previous(1, Cause::Failed, 1, "no luck")
    );
}

async fn a_claim_by_the_grantee_confirms_and_restarts_the_lease(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    bench.pass(WINDOW - 1).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Held, 2, Some(2)));
    assert_eq!(record(&reply).fence, record(&granted).fence);
    assert_eq!(record(&reply).until, reply.frame.at / 1_000 + LEASE);
    assert!(record(&reply).order() > record(&granted).order());
}

async fn a_claim_after_the_confirm_window_reuses_the_number(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2, 3]).await;
    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    assert_eq!(state(&granted), (State::Granted, 2, Some(2)));
    assert!(!bench.apply(&key(), &claim(3)).await.ok);
    bench.pass(WINDOW).await;
    let reply = bench.apply(&key(), &claim(3)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Held, 2, Some(3)));
    assert!(record(&reply).fence > record(&granted).fence);
    assert_eq!(
        record(&reply).previous,
        previous(1, Cause::Failed, 1, "no luck")
    );
}

async fn a_claim_on_an_outcome_changes_nothing(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    let done = bench
        .apply(&key(), &settle(fence, Outcome::Done(Bytes::new())))
        .await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert!(!reply.ok);
    assert_eq!(
        (reply.frame.record, reply.position),
        (done.frame.record, None)
    );

    bench.pass(RETENTION).await;
    let fence = held(&mut bench, &[]).await;
    let outcome = Outcome::FailPermanently("never".to_owned());
    let exhausted = bench.apply(&key(), &settle(fence, outcome)).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert!(!reply.ok);
    assert_eq!(
        (reply.frame.record, reply.position),
        (exhausted.frame.record, None)
    );
}

async fn a_claim_by_the_owner_before_is_refused(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    let late = bench.apply(&key(), &claim(1)).await;
    assert!(!late.ok);
    assert_eq!(
        (late.frame.record, late.position),
        (granted.frame.record.clone(), None)
    );
    // Not even once the key is free for anybody else.
    bench
        .apply(&key(), &settle(record(&granted).fence, fail()))
        .await;
    let late = bench.apply(&key(), &claim(2)).await;
    assert!(!late.ok);
    assert_eq!(state(&late), (State::Open, 2, None));
}

async fn an_acquirer_leaves_the_line(mut bench: impl Bench) {
    held(&mut bench, &[2]).await;
    bench.pass(LEASE).await;
    let taken = bench.apply(&key(), &claim(2)).await;
    assert_eq!(bench.life(&key()).await.unwrap().1, 0);
    let failed = bench
        .apply(&key(), &settle(record(&taken).fence, fail()))
        .await;
    assert_eq!(
        state(&failed),
        (State::Open, 2, None),
        "not granted to itself"
    );
}

async fn done_ends_the_run_and_is_remembered_for_the_retention(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    let done = settle(fence, Outcome::Done(Bytes::from_static(b"\0result\xff")));
    let reply = bench.apply(&key(), &done).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Done, 1, Some(1)));
    assert_eq!(record(&reply).result, Bytes::from_static(b"\0result\xff"));
    assert_eq!(record(&reply).holder, "worker-1");
    let (life, line) = bench.life(&key()).await.unwrap();
    assert!(life <= RETENTION && life > RETENTION - 1_000, "{life}");
    assert_eq!(line, 0);

    let again = bench.apply(&key(), &done).await;
    assert!(again.ok, "done by this grant");
    assert_eq!(again.frame.record, reply.frame.record);
    assert!(
        !bench.apply(&key(), &settle(fence, fail())).await.ok,
        "done stays done"
    );

    bench.pass(RETENTION).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert_eq!(state(&reply), (State::Held, 1, Some(2)), "the next run");
}

async fn done_counts_past_the_lease_if_nobody_took_over(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    bench.pass(LEASE + 1_000).await;
    assert!(
        bench
            .apply(&key(), &settle(fence, Outcome::Done(Bytes::new())))
            .await
            .ok
    );
}

async fn done_counts_before_the_grant_was_confirmed(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    let done = settle(record(&granted).fence, Outcome::Done(Bytes::new()));
    let reply = bench.apply(&key(), &done).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Done, 2, Some(2)));
}

async fn a_failure_is_handed_to_the_head_of_the_line(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2, 3]).await;
    let reply = bench
        .apply(&key(), &settle(fence, Outcome::Fail(Failure::Dropped)))
        .await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Granted, 2, Some(2)));
    assert_eq!(record(&reply).until, reply.frame.at / 1_000 + WINDOW);
    assert_eq!(record(&reply).holder, "worker-2");
    assert_eq!(record(&reply).previous, previous(1, Cause::Dropped, 1, ""));
    assert!(record(&reply).fence > fence);

    let fence = record(&reply).fence;
    let reply = bench
        .apply(&key(), &settle(fence, Outcome::Fail(Failure::Panicked)))
        .await;
    assert_eq!(state(&reply), (State::Granted, 3, Some(3)));
    assert_eq!(record(&reply).previous, previous(2, Cause::Panicked, 2, ""));
}

async fn a_failure_without_waiters_leaves_the_key_open(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    let reply = bench.apply(&key(), &settle(fence, fail())).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Open, 1, None));
    assert_eq!(
        record(&reply).previous,
        previous(1, Cause::Failed, 1, "no luck")
    );
    let (life, _) = bench.life(&key()).await.unwrap();
    assert!(life <= RETENTION && life > RETENTION - 1_000, "{life}");
}

async fn the_last_failure_exhausts_the_run(mut bench: impl Bench) {
    let first = bench.apply(&key(), &claim_with(1, 1, RETENTION)).await;
    bench.apply(&key(), &claim(2)).await;
    let reply = bench
        .apply(&key(), &settle(record(&first).fence, fail()))
        .await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::GaveUp, 1, None));
    assert_eq!(
        record(&reply).previous,
        previous(1, Cause::Failed, 1, "no luck")
    );
    assert_eq!(bench.life(&key()).await.unwrap().1, 0);
    bench.pass(RETENTION).await;
    let reply = bench.apply(&key(), &claim(2)).await;
    assert_eq!(state(&reply), (State::Held, 1, Some(2)), "cooled down");
}

async fn a_permanent_failure_exhausts_the_run_at_any_attempt(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    let outcome = Outcome::FailPermanently("never".to_owned());
    let reply = bench.apply(&key(), &settle(fence, outcome)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::GaveUp, 1, None));
    assert_eq!(
        record(&reply).previous,
        previous(1, Cause::Failed, 1, "never")
    );
}

async fn a_hand_off_is_not_counted_and_keeps_the_checkpoint(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2]).await;
    bench.apply(&key(), &renew(fence, Some("half"))).await;
    let reply = bench.apply(&key(), &settle(fence, Outcome::HandOff)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Granted, 1, Some(2)));
    assert_eq!(record(&reply).checkpoint, "half");
    assert_eq!(
        record(&reply).previous,
        previous(1, Cause::HandedOff, 1, "")
    );
}

async fn a_hand_off_without_waiters_opens_the_attempt_again(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    let reply = bench.apply(&key(), &settle(fence, Outcome::HandOff)).await;
    assert_eq!(state(&reply), (State::Open, 0, None));
    let reply = bench.apply(&key(), &claim(2)).await;
    assert_eq!(state(&reply), (State::Held, 1, Some(2)));
}

async fn a_renewal_restarts_the_lease_and_keeps_what_it_is_given(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2, 3]).await;
    bench.pass(LEASE - 1_000).await;
    let reply = bench.apply(&key(), &renew(fence, Some("a"))).await;
    assert!(reply.ok);
    assert_eq!(record(&reply).until, reply.frame.at / 1_000 + LEASE);
    assert_eq!((record(&reply).renewal, record(&reply).fence), (1, fence));
    let reply = bench.apply(&key(), &renew(fence, None)).await;
    assert_eq!(
        (record(&reply).renewal, &record(&reply).checkpoint[..]),
        (2, &b"a"[..])
    );
    assert_eq!(
        bench.life(&key()).await.unwrap().1,
        2,
        "the line lives as long"
    );

    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    let reply = bench
        .apply(&key(), &renew(record(&granted).fence, None))
        .await;
    assert_eq!(state(&reply), (State::Held, 2, Some(2)), "confirmed");
    assert_eq!(record(&reply).checkpoint, "a", "for the successor");
}

async fn a_withdrawal_leaves_the_line(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2, 3]).await;
    assert!(bench.apply(&key(), &withdraw(2)).await.ok);
    assert!(!bench.apply(&key(), &withdraw(2)).await.ok, "it has left");
    let reply = bench.apply(&key(), &settle(fence, fail())).await;
    assert_eq!(state(&reply), (State::Granted, 2, Some(3)));
}

async fn a_withdrawal_passes_an_unused_grant_on(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2, 3]).await;
    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    let reply = bench.apply(&key(), &withdraw(2)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Granted, 2, Some(3)));
    assert!(record(&reply).fence > record(&granted).fence);
    assert_eq!(
        record(&reply).previous,
        record(&granted).previous,
        "nobody worked on it"
    );

    // A claim's answer that nobody wants: held, and yet nobody began.
    let held = bench
        .apply(&key(), &renew(record(&reply).fence, None))
        .await;
    assert_eq!(state(&held), (State::Held, 2, Some(3)));
    let reply = bench.apply(&key(), &withdraw(3)).await;
    assert_eq!(state(&reply), (State::Open, 1, None));
    let reply = bench.apply(&key(), &claim(4)).await;
    assert_eq!(state(&reply), (State::Held, 2, Some(4)));
}

async fn a_withdrawal_leaves_a_grant_that_was_worked_on(mut bench: impl Bench) {
    let fence = held(&mut bench, &[2, 3]).await;
    let granted = bench.apply(&key(), &settle(fence, fail())).await;
    let fence = record(&granted).fence;
    let reply = bench.apply(&key(), &withdraw_except(2, fence)).await;
    assert!(!reply.ok);
    assert_eq!(reply.frame.record, granted.frame.record);
    // Another one was, before or, by a clock that was set back, after it; this came by a claim that was late.
    let reply = bench.apply(&key(), &withdraw_except(2, fence - 1)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Granted, 2, Some(3)));
    let fence = record(&reply).fence;
    let reply = bench.apply(&key(), &withdraw_except(3, fence + 1)).await;
    assert!(reply.ok);
    assert_eq!(state(&reply), (State::Open, 1, None));

    // Nor is it in the way of leaving the line.
    let fence = record(&bench.apply(&key(), &claim(4)).await).fence;
    assert_eq!(bench.apply(&key(), &claim(5)).await.position, Some(0));
    assert!(bench.apply(&key(), &withdraw_except(5, fence)).await.ok);
    assert_eq!(bench.apply(&key(), &claim(6)).await.position, Some(0));
}

async fn what_is_not_this_grant_is_lost_and_unchanged(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    bench.pass(LEASE).await;
    let taken = bench.apply(&key(), &claim(2)).await;
    let lost = [
        settle(fence, Outcome::Done(Bytes::from_static(b"late"))),
        settle(fence, fail()),
        settle(fence, Outcome::FailPermanently(String::new())),
        settle(fence, Outcome::HandOff),
        renew(fence, Some("late")),
        withdraw(1),
    ];
    for op in lost {
        let reply = bench.apply(&key(), &op).await;
        assert!(!reply.ok, "{op:?}");
        assert_eq!(reply.frame.record, taken.frame.record, "{op:?}");
    }
}

async fn what_is_absent_is_lost(mut bench: impl Bench) {
    let fence = held(&mut bench, &[]).await;
    bench.lose(&key()).await;
    for op in [
        settle(fence, Outcome::Done(Bytes::new())),
        renew(fence, None),
        withdraw(1),
    ] {
        let reply = bench.apply(&key(), &op).await;
        assert!(!reply.ok, "{op:?}");
        assert_eq!(reply.frame.record, None, "{op:?}");
    }
}

async fn a_clear_begins_a_run_anew_in_every_state(mut bench: impl Bench) {
    use State::*;
    let clear = Op::Clear { window: WINDOW };
    let reply = bench.apply(&key(), &clear).await;
    assert!(!reply.ok && reply.frame.record.is_none(), "nothing");
    let done = Outcome::Done(Bytes::from_static(b"result"));
    let never = Outcome::FailPermanently("never".to_owned());
    // Who waits, how the first attempt ends, what that makes of it, and who is next.
    for (waiting, end, before, next) in [
        (&[][..], None, (Held, 1), None),
        (&[2, 3], None, (Held, 1), Some(2)),
        (&[2], Some(fail()), (Granted, 2), None),
        (&[2, 3], Some(fail()), (Granted, 2), Some(3)),
        (&[], Some(fail()), (Open, 1), None),
        (&[], Some(done), (Done, 1), None),
        (&[], Some(never), (GaveUp, 1), None),
    ] {
        let fence = held(&mut bench, waiting).await;
        let mut was = bench.apply(&key(), &renew(fence, Some("half"))).await;
        if let Some(end) = end {
            was = bench.apply(&key(), &settle(fence, end)).await;
        }
        let was = record(&was);
        assert_eq!((was.state, was.attempt), before);
        bench.pass(1).await;
        let cleared = bench.apply(&key(), &clear).await;
        assert!(cleared.ok);
        let (anew, left) = match next {
            Some(_) => ((Granted, 1, next), WINDOW),
            None => ((Open, 0, None), RETENTION),
        };
        assert_eq!(state(&cleared), anew, "{before:?}");
        let anew = record(&cleared);
        assert!(anew.fence > was.fence, "{before:?}");
        assert_eq!(anew.until, cleared.frame.at / 1_000 + left);
        assert_eq!((anew.max_attempts, anew.retention), (3, RETENTION));
        assert_eq!(
            (&anew.previous, &anew.checkpoint[..], &anew.result[..]),
            (&None, &b""[..], &b""[..])
        );
        let next = next.unwrap_or(4);
        let reply = bench.apply(&key(), &claim(next)).await;
        assert_eq!(state(&reply), (Held, 1, Some(next)), "{before:?}");
        bench.lose(&key()).await;
    }
}

async fn what_was_cleared_comes_too_late(mut bench: impl Bench) {
    for waiting in [&[][..], &[2]] {
        let fence = held(&mut bench, waiting).await;
        let cleared = bench.apply(&key(), &Op::Clear { window: WINDOW }).await;
        let late = [
            claim(1),
            settle(fence, Outcome::Done(Bytes::from_static(b"late"))),
            settle(fence, fail()),
            renew(fence, Some("late")),
            withdraw(1),
        ];
        for op in late {
            let reply = bench.apply(&key(), &op).await;
            assert!(!reply.ok, "{op:?}");
            assert_eq!(reply.frame.record, cleared.frame.record, "{op:?}");
            assert_eq!(reply.position, None, "{op:?}");
        }
        bench.lose(&key()).await;
    }
}

async fn the_run_follows_its_first_claim(mut bench: impl Bench) {
    let first = bench.apply(&key(), &claim_with(1, 2, RETENTION)).await;
    bench.apply(&key(), &claim_with(2, 9, 9 * RETENTION)).await;
    let reply = bench
        .apply(&key(), &settle(record(&first).fence, fail()))
        .await;
    assert_eq!(
        (record(&reply).max_attempts, record(&reply).retention),
        (2, RETENTION)
    );
    let reply = bench
        .apply(&key(), &settle(record(&reply).fence, fail()))
        .await;
    assert_eq!(state(&reply), (State::GaveUp, 2, None));
    assert!(bench.life(&key()).await.unwrap().0 <= RETENTION);
}

async fn fencing_tokens_rise_across_runs_and_lost_records(mut bench: impl Bench) {
    let mut highest = 0;
    for round in 0..3 {
        let reply = bench.apply(&key(), &claim(round)).await;
        assert!(record(&reply).fence > highest);
        highest = record(&reply).fence;
        bench.pass(1).await;
        bench.lose(&key()).await;
    }
}

async fn every_change_is_heard_and_nothing_else(mut bench: impl Bench) {
    let mut heard = bench.store().hear();
    bench.store().watch(&key()).await.unwrap();
    let mut changes = Vec::new();
    let fence = {
        let reply = bench.apply(&key(), &claim(1)).await;
        let fence = record(&reply).fence;
        changes.push(reply);
        fence
    };
    bench.apply(&key(), &claim(1)).await;
    bench.apply(&key(), &claim(2)).await;
    bench.apply(&key(), &claim(3)).await;
    bench.apply(&key(), &Op::Inspect).await;
    changes.push(bench.apply(&key(), &renew(fence, Some("a"))).await);
    changes.push(bench.apply(&key(), &settle(fence, fail())).await);
    changes.push(bench.apply(&key(), &claim(2)).await);
    bench.apply(&key(), &settle(fence, fail())).await;
    bench.apply(&key(), &withdraw(1)).await;
    changes.push(bench.apply(&key(), &withdraw(2)).await);
    let fence = record(changes.last().unwrap()).fence;
    changes.push(bench.apply(&key(), &settle(fence, Outcome::HandOff)).await);
    changes.push(bench.apply(&key(), &claim(4)).await);
    let fence = record(changes.last().unwrap()).fence;
    changes.push(
        bench
            .apply(&key(), &settle(fence, Outcome::Done(Bytes::new())))
            .await,
    );

    let states = changes.iter().map(|reply| state(reply).0);
    use State::*;
    assert!(states.eq([Held, Held, Granted, Held, Granted, Open, Held, Done]));
    for change in changes {
        match heard.next().await {
            Some(StoreEvent::Message { channel, frame }) => {
                assert_eq!(channel.as_bytes(), key().server_names()[1]);
                assert_eq!(
                    frame,
                    Some(change.frame),
                    "what is heard is what was answered"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn inspecting_changes_nothing(mut bench: impl Bench) {
    let reply = bench.apply(&key(), &Op::Inspect).await;
    assert_eq!((reply.frame.record, reply.position), (None, Some(0)));
    held(&mut bench, &[2, 3]).await;
    let reply = bench.apply(&key(), &Op::Inspect).await;
    assert_eq!(state(&reply), (State::Held, 1, Some(1)));
    assert_eq!(reply.position, Some(2));
}
