#!/usr/bin/env bash
# Breaks the code on purpose, one mistake at a time, and sees a test fail for each: a test that
# cannot fail proves nothing. Works on a copy; takes about ten seconds a mistake.
#
#   scripts/mutants.sh            # all of them
#   scripts/mutants.sh defect     # those whose name contains "defect"
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
# Its own: cargo tells the copy and the original apart by time stamps only.
export CARGO_TARGET_DIR="$root/target/mutants"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
cd "$copy"

caught=0 missed=()

# mutant NAME FILE CORRECT WRONG CARGO-TEST-ARGUMENTS…
# With expect=PATTERN in front of it, the failure must say so.
mutant() {
    local name=$1 file=$2 correct=$3 wrong=$4
    shift 4
    case $name in *"$only"*) ;; *) return ;; esac
    cp "$file" "$copy/original"
    CORRECT=$correct WRONG=$wrong perl -0777 -i -pe \
        's/\Q$ENV{CORRECT}\E/$ENV{WRONG}/g or die "not found: $ENV{CORRECT}\n"' "$file" || {
        missed+=("$name") && echo "NO SUCH TEXT  $name"
        cp "$copy/original" "$file"
        return
    }
    if ! cargo test --quiet --no-run "$@" >"$copy/log" 2>&1; then
        echo "does not compile: $name" && cat "$copy/log" && exit 1
    fi
    if timeout 120 cargo test --quiet "$@" >"$copy/log" 2>&1; then
        missed+=("$name") && echo "MISSED  $name"
    elif ! grep -q "${expect:-}" "$copy/log"; then
        missed+=("$name") && echo "FAILED  $name, but not with '$expect'"
    else
        caught=$((caught + 1)) && echo "caught  $name"
    fi
    mv "$copy/original" "$file" && touch "$file"
}

only=${1:-}
lua=src/store/redis
defects="--test it"

mutant "defect 01: a lease that nobody respects" $lua/claim.lua \
    'owned(r) and not over(r)' 'owned(r) and false' $defects defect_01
mutant "defect 02: done work is claimed again" $lua/claim.lua \
    "r.last == token or r.state == 'done' or" 'r.last == token or' $defects defect_02
mutant "defect 03: all keys share a record" src/store/redis/batch.rs \
    'names.map(|name| Value::Bytes(name.clone()))' 'names.map(|_| Value::from("job"))' $defects defect_03
mutant "defect 04: anybody may settle" $lua/settle.lua \
    'or r.fence ~= fence then' 'then' $defects defect_04
mutant "defect 05: the fence restarts with each run" $lua/claim_absent.lua \
    "' fence=' .. now .. ' line=0" "' fence=1 line=0" $defects defect_05
mutant "defect 06: the only attempt is not the last" src/guard.rs \
    'lease.attempt >= lease.max_attempts' 'lease.attempt > lease.max_attempts' $defects defect_06
mutant "defect 07: an outcome that never expires" $lua/settle_done.lua \
    "redis.call('SET', key, record, 'PX', retention)" \
    "redis.call('SET', key, record)" $defects defect_07
mutant "defect 08: a fraction of a ms reaches the server" $lua/claim_absent.lua \
    'int(lease + retention)' "int(lease + retention) .. '.5'" $defects defect_08
mutant "defect 09: an error is swallowed" src/hub/run/outage.rs \
    'member.tell(Update::Unavailable(error.clone(), id));' '' $defects defect_09
mutant "defect 10: a failure is not told" $lua/record.lua \
    "redis.call('SPUBLISH', line, record_text)" '' $defects defect_10
mutant "defect 11: a late joiner believes in attempt 1" src/hub/run/news.rs \
    'attempt: record.attempt,' 'attempt: 1,' $defects defect_11
mutant "defect 12: the last failure is one like others" src/hub/run/grants.rs \
    '_ if record.state == State::GaveUp => Ended::GaveUp(gave_up(record)),' '' $defects defect_12

hub="--lib hub::tests"
mutant "hub: no second claim after subscribing" src/hub/run/subscription.rs \
    'self.subscription.delay = RETRY_FIRST;' 'self.subscription.delay = RETRY_FIRST; return;' \
    $hub::a_release_between
mutant "hub: no timer at the end of the lease" src/hub/run/claims.rs \
    'audit.into_iter().chain([claim]).min()' 'audit' $hub::without_any_message
mutant "hub: messages are believed before the first answer" src/hub/run/news.rs \
    'member.stage != Stage::Waiting' 'member.stage == Stage::Holding' $hub::a_grant_heard_before
mutant "hub: an outage is told at every try" src/hub/run/outage.rs \
    'outage.claims |= claims;' 'outage.claims |= claims; for m in self.members.values() { m.tell(Update::Error(error.clone())); }' \
    $hub::an_outage
mutant "hub: a lost answer is taken for a lost lease" src/hub/run/grants.rs \
    'reply.ok || was_settled(record, lease, outcome)' 'reply.ok' $hub::a_settlement_whose_answer
mutant "hub: the lease is counted from the answer, without a margin" src/lease.rs \
    'left.saturating_sub(terms.margin_of(left))' 'left + terms.margin_of(left)' $hub::a_guard_is_invalid
mutant "hub: a late claim ends the guard that a push has brought" src/hub/run/grants.rs \
    'live.chain(self.worked)' 'live.take(0).chain(self.worked)' $hub::a_late_claim_does_not
mutant "hub: what was worked on and lost is given back" src/hub/run/grants.rs \
    'live.chain(self.worked)' 'live.chain(None)' $hub::a_late_claim_does_not
mutant "hub: what comes later than its run is kept" src/hub/run.rs \
    'told.fence > self.spared(token)' 'self.spared(token) == 0' $hub::a_claim_after_its_run
mutant "hub: what comes later than its run, unheard, is kept" src/hub/run/outage.rs \
    'if wanted && !unproven {' 'if wanted && !unproven || self.spared(token) > 0 {' $hub::a_claim_after_its_run
mutant "hub: what comes while its reader is at work is kept" src/hub/run/claims.rs \
    'member.stage != Stage::Holding' 'true' $hub::a_claim_after_its_run
mutant "hub: a refusal leaves the outage" src/hub/run/outage.rs \
    'return self.recover(claims);' 'return;' $hub::a_refusal_ends
mutant "hub: without a handle it claims again" src/hub/run/news.rs \
    'return self.leave(id, now);
                };' 'return; };' $hub::the_last_stream
mutant "hub: who was not answered stays in line" src/hub/run/outage.rs \
    'if !member.claiming {' 'if member.stage == Stage::Waiting && !member.claiming {' $hub::a_refused_joining_stream
mutant "hub: the hand-off before is taken for ours" src/hub/run/grants.rs \
    '&& !lease
            .previous' '&& !lease.previous.as_ref().filter(|_| false)' $hub::a_hand_off_that
mutant "hub: our hand-off is taken for the one before" src/hub/run/grants.rs \
    '&& *holder == *lease.terms.label' '' $hub::a_hand_off_whose
mutant "hub: what is forgotten late was worked on last" src/hub/run/grants.rs \
    'later.or(Some((fence, token)))' 'Some((fence, token)).or(later)' $hub::a_slow_settlement
mutant "hub: the order of news is not looked at" src/hub/run/news.rs \
    'let newer = order.is_gt() || lost;' 'let newer = true;' $hub::a_late_message
mutant "hub: a dropped stream stays in line" src/hub/run.rs \
    'member.stage != Stage::Holding && !member.claiming' 'false' --test it acquire_as_waiter
mutant "hub: an unwanted answer is kept" src/hub/run.rs \
    'reply.ok || reply.position.is_some()' 'false' --test it acquire_as_holder
mutant "hub: close does not wait" src/hub.rs \
    'tracker.wait().await;' '' $hub::draining_waits
mutant "hub: what nobody takes is given back by a message of its own" src/hub/run/news.rs \
    'lease.give();' 'drop(unsent); member.stage = Stage::Holding; return;' \
    $hub::draining_waits_for_the_return
mutant "hub: who is refused stays in line" src/hub/run/outage.rs \
    'if !member.claiming {' 'if false {' $hub::a_refused_waiter
mutant "guard: dropping says nothing" src/guard.rs \
    'self.grant.settle(Outcome::Fail(failure), None);' 'let _ = failure;' --test it a_dropped_guard
mutant "guard: a grant that was not yielded is kept" src/hub.rs \
    'self.hub.send(Message::Return(self.lease.clone()));' '' $hub::a_grant_that_is_not_taken
mutant "stream: lost before it was settled" src/acquire.rs \
    '(State::Working { attempt, .. }, Update::Lost) => State::Working {
                attempt,
                lost: true,
            },' '(State::Working { attempt, .. }, Update::Lost) => self.expired(attempt),' \
    --test it an_expired_lease_may_still
mutant "stream: a stale grant is yielded as it is" src/hub.rs \
    'self.lease.remaining() < enough' 'false' $hub::a_grant_whose_lease

renewal="--lib hub::tests::renewal"
mutant "renewal: never sent" src/keeper.rs 'self.renew(due);' '' --lib renewal::a_renewal_that_fails
mutant "renewal: begins with the guard" src/hub.rs \
    'if !self.lease.give() {' 'self.in_use(); if !self.lease.give() {' --test it a_guard_that_nobody_uses
mutant "renewal: not tried again" src/keeper.rs \
    'true => now + delay.min(half),' 'true => lease.ends(),' $renewal::a_renewal_that_fails
mutant "renewal: a checkpoint is not tried again" src/hub/run/renewal.rs \
    'asker => Some(asker),' 'asker => { drop(asker); None }' $renewal::an_old_checkpoint
mutant "renewal: past the longest hold" src/lease.rs \
    'length.min(u64::try_from(left).unwrap_or(u64::MAX)).max(1)' 'length.min(u64::try_from(left).unwrap_or(u64::MAX)).max(length)' $renewal::no_renewal_reaches
mutant "renewal: shortens the lease" src/store/memory/transition.rs \
    'record.until.max(self.now + lease)' 'self.now + lease' --test it an_extended_lease
mutant "renewal: an old checkpoint is sent again" src/hub/run/renewal.rs \
    'checkpoint.filter(|_| nth == live.checkpoints)' 'checkpoint.filter(|_| nth > 0)' \
    $renewal::an_old_checkpoint
mutant "renewal: sent for a guard that has ended" src/hub/run/renewal.rs \
    '!self.settling && !self.lease.is_lost()' 'true' $renewal::a_renewal_ends_with_its_guard
mutant "renewal: the longest hold counts from a late answer" src/lease.rs \
    '*known = granted.min(*known);' 'let _ = (&known, granted);' $renewal::no_renewal_reaches
mutant "renewal: the keeper does not hear the time of the server" src/keeper.rs \
    'lease.hear_time(asked, reply.frame.at);' '' --lib a_renewal_is_not_for_longer
mutant "renewal: counted from the answer" src/lease.rs \
    'let due = term
            .ends
            .saturating_sub(lease.saturating_sub(every + margin));' \
    'let due = self.clock.now() + every;' $renewal::a_slow_answer
mutant "loss: a guard that is lost from the start is renewed" src/hub.rs \
    'self.hub.send(Message::Expired(self.lease.clone()));' '' $renewal::a_guard_that_is_lost_from_the_start
mutant "replicas: a grant heard of is withdrawn while it is confirmed" src/hub/run.rs \
    'spared: self.spared(token),' 'spared: 0,' $renewal::a_claim_that_no_replica_has
mutant "renewal: a checkpoint is forgotten" $lua/renew.lua \
    'r.checkpoint = checkpoint' '' --test it redis::the_next_attempt_finds
mutant "renewal: waiters are told of it" src/hub/run/news.rs \
    'if member.told != record.fence {' 'if true {' $renewal::renewals_cause_no_events
mutant "loss: the end of the lease is told to nobody" src/hub/run/grants.rs \
    'if live.lapsed || lease.is_given() {' 'if live.lapsed {' $renewal::without_any_answer
mutant "loss: told when the server lets others in" src/lease.rs \
    'left.saturating_sub(terms.margin_of(left))' 'left + terms.margin_of(left)' \
    $renewal::without_any_answer
mutant "loss: a lost guard is valid until its lease ends" src/lease.rs \
    'if self.is_lost() {
            return Duration::ZERO;
        }' '' --test it a_lost_record
mutant "loss: a late answer brings the guard back" src/hub/run/grants.rs \
    'lease.expire();
                self.lost(&lease);' 'live.lapsed = true;' $renewal::an_answer_that_comes_too_late
mutant "loss: what works for a settled guard goes on" src/hub.rs \
    'self.lease.lose(LeaseLost::Settled);' '' --test it the_end_of_a_guard
mutant "loss: a dead runtime tells nobody" src/hub/run/grants.rs \
    'self.lease.lose(LeaseLost::Stopped);' '' $renewal::when_the_runtime_dies
mutant "loss: the successor is not named" src/store/record.rs \
    'record.state.is_owned() || record.state == State::Done' 'false' \
    --test it a_renewal_of_a_lost_guard
mutant "once: who has failed leaves" src/once.rs \
    'rejoin: true,' 'rejoin: false,' --test it once_fails_over
mutant "fenced: not looked at" $lua/fenced.lua \
    'and fence == ARGV[1]' '' --test it a_holder_writes
mutant "fenced: another slot is sent" src/store/redis.rs \
    'if slot != key.slot() {' 'if false {' --test it in_a_cluster
mutant "fenced: a null is sent" src/guard.rs \
    '| Value::Bytes(_)' '| Value::Bytes(_) | Value::Null' --test it what_is_wrong
mutant "replicas: not waited for" src/store/redis/replication.rs \
    'Ok(acknowledged) if acknowledged >= count => {}' 'Ok(_) => {}' --test it without_its_replica
mutant "replicas: a grant by push is relied on" src/hub.rs \
    '(self.lease.terms.replicated && !self.confirmed)' 'false' $renewal::a_grant_by_push
mutant "replicas: a grant that none has is kept" src/hub/run/outage.rs \
    'if wanted && !unproven {' 'if wanted {' $renewal::a_grant_that_no_replica

batches="--test it"
mutant "batch: a refused one refuses all" src/store/redis.rs \
    'part.items.len() > 1 && blames_one(&error)' 'false' $batches a_key_without_permission
mutant "batch: an error ends the script" $lua/each.lua \
    'pcall(carry_out, n)' 'true, carry_out(n)' $batches a_key_in_other_use
mutant "batch: answers have no bound" $lua/each.lua \
    'if length > 262144 then' 'if false then' $batches long_answers
mutant "lanes: long things travel with others" src/hub/batcher.rs \
    'bytes <= MOST_BYTES' 'true' --lib batcher::tests::what_is_long
mutant "lanes: a renewal is sent that nobody needs" src/hub/task.rs \
    'if call.is_renewal() {' 'if false {' $hub::a_renewal_that_has_waited
mutant "lanes: an answer does not make room" src/hub/batcher.rs \
    'queue.answered(items);' '' $hub::queued_requests
mutant "news: those who wait are told again and again" src/hub/task.rs \
    'entry.run.is_behind() && !was_behind' 'entry.run.is_behind()' $hub::a_grant_among
mutant "batch: the terms of the first are everybody's" src/store/redis/batch.rs \
    'shares(first, op)' 'std::mem::discriminant(first) == std::mem::discriminant(op)' $batches answers_are_in_the_order
mutant "batch: in the order of the scripts" src/store/redis.rs \
    'results.sort_unstable_by_key(|(place, _)| *place);' '' $batches answers_are_in_the_order
mutant "batch: claims before what makes room" src/store/redis/batch.rs \
    'Op::Withdraw { .. } => 2,' 'Op::Withdraw { .. } => 5,' $batches what_makes_room
mutant "lanes: nothing gathers" src/hub/batcher.rs \
    'let most = share.clamp(FEW, MOST);' 'let most = 1.min(share);' $batches what_is_asked_at_once
mutant "lanes: everything waits for one answer" src/hub/batcher.rs \
    'const WINDOW: usize = 2;' 'const WINDOW: usize = 1;' --lib batcher::tests::requests_that_come
mutant "lanes: a few leave behind many" src/hub/batcher.rs \
    '|| 2 * waiting < self.items' '' --lib batcher::tests::a_few_do_not
mutant "done: anybody may complete" $lua/settle_done.lua \
    'if held == fence then' 'if held then' -p proof --test it the_scripts_answer
mutant "done: those who wait are forgotten" $lua/settle_done.lua \
    'line=0 ' 'line=%d ' -p proof --test it the_scripts_answer
mutant "claim: an absent key is taken from whoever has it" $lua/claim_absent.lua \
    "'NX', 'GET', 'PX'" "'PX'" --test it redis::a_claim_on_a_held_key
mutant "line: nobody is known to wait" $lua/claim.lua \
    'r.line = true' 'r.line = false' --test it redis::a_failure_is_handed
mutant "news: those who wait on are told nothing" src/hub/run/news.rs \
    'self.behind = self.members.len() > 1;' '' --test it who_waits_on

mutant "redis: a subscriber that is back does not subscribe" src/hub/task.rs \
    'self.with_all(Run::resubscribe);' '' -p proof --test it a_subscriber_that_was_cut_off
mutant "redis: a forgotten script is an error" src/store/redis.rs \
    'starts_with("NOSCRIPT")' 'starts_with("NOSUCH")' -p proof --test it forgotten_scripts
mutant "redis: a full server keeps what it holds" src/store/redis/scripts.rs \
    '" flags=allow-oom"' '""' -p proof --test it a_full_server
mutant "redis: a passing error ends the stream" src/store/redis.rs \
    '"READONLY",' '' -p proof --test it a_replica

# Each invariant broken, and found in a fleet's history.
chaos="-p proof --test chaos no_fleet"
expect="invariant [0-9]*:" mutant "chaos 1: a lease that nobody respects" $lua/claim.lua \
    'owned(r) and not over(r)' 'owned(r) and false' $chaos
expect="invariant [0-9]*:" mutant "chaos 2: the fence restarts with each run" $lua/claim_absent.lua \
    "' fence=' .. now .. ' line=0" "' fence=1 line=0" $chaos
expect="invariant [0-9]*:" mutant "chaos 3: no bound on attempts" $lua/settle.lua \
    'r.attempt >= r.max' 'false' $chaos
expect="invariant [0-9]*:" mutant "chaos 4: done work is claimed again" $lua/claim.lua \
    "r.last == token or r.state == 'done' or" 'r.last == token or' $chaos
expect="invariant [0-9]*:" mutant "chaos 5: anybody may complete" $lua/settle.lua \
    'or r.fence ~= fence then' 'then' $chaos
expect="invariant [0-9]*:" mutant "chaos 6: a guard outlives its lease" src/lease.rs \
    'left.saturating_sub(terms.margin_of(left))' '2 * left' $chaos
expect="invariant [0-9]*:" mutant "chaos 7: a stream goes on after its end" src/acquire.rs \
    'self.events.push_back(event);
        State::Finished' 'self.events.push_back(event); self.events.push_back(LockEvent::Failed(Failed { attempt: 1, reason: Reason::Lost }));
        State::Finished' $chaos
expect="invariant [0-9]*:" mutant "chaos 8: somebody else's result" src/hub/run/grants.rs \
    'result: record.result.clone()' 'result: record.checkpoint.clone()' $chaos
expect="invariant [0-9]*:" mutant "chaos 9: nobody hears of a failure" $lua/record.lua \
    "redis.call('SPUBLISH', line, record_text)" "if r.state ~= 'open' then redis.call('SPUBLISH', line, record_text) end" $chaos
expect="invariant [0-9]*:" mutant "chaos 10: an outage is not tried to end" src/hub/run/outage.rs \
    'retry_at: Some(now + jittered(RETRY_FIRST))' 'retry_at: None' $chaos
expect="invariant [0-9]*:" mutant "chaos 11: a dropped guard says nothing" src/guard.rs \
    'self.grant.settle(Outcome::Fail(failure), None);' 'let _ = failure;' $chaos
# The checker itself: what it is told apart by.
history="-p proof --test it history::"
common=proof/src/history
mutant "checker: how late is too late" $common.rs \
    'const SOON: u64 = 3_000_000' 'const SOON: u64 = 9_000_000' $history
mutant "checker: how long a fault is felt" $common.rs \
    'const GRACE: u64 = 6_000_000' 'const GRACE: u64 = 60_000_000' $history
mutant "checker: a fault of others excuses" $common.rs \
    'fault.scope == scope &&' '' $history
mutant "checker: what is forgotten is taken for what nobody saw" $common.rs \
    'Step::Wrote(_) | Step::Forgot { .. } => false,' 'Step::Wrote(_) => false, Step::Forgot { .. } => true,' $history
mutant "checker: after a loss nothing is checked" $common/transitions.rs \
    '(before, between) = (Some(record), Between::Nothing);' 'before = Some(record);' $history
mutant "checker: any attempt follows" $common/transitions.rs \
    'Ok(attempt) if record.attempt == attempt => {}' 'Ok(_) => {}' $history
mutant "checker: anybody ends a lease" $common/transitions.rs \
    'None if self.is_acquired(grant) && !over => Err(1),' '' $history
mutant "checker: a gap forgets a completion" $common/transitions.rs \
    'if !same && at + TICK' 'if false && at + TICK' $history
mutant "checker: a refused write is nothing" $common/guards.rs \
    'if !accepted && later' 'if false && later' $history
mutant "checker: a fatal error is an end like others" $common/streams.rs \
    'What::Fatal(_) => self.violates(7, format_args!("{event:?}")),' '' $history
mutant "checker: whoever ends at all ends in time" $common/streams.rs \
    'over.is_none_or(|at| at > latest)' 'over.is_none()' $history
mutant "checker: what nobody took is not looked at" $common/timing.rs \
    '(None, false) => began,' '(None, false) => return,' $history
mutant "checker: the end of a lease is no failure" $common/timing.rs \
    'State::Held | State::Granted => record.until * 1_000,' 'State::Held | State::Granted => return,' $history
mutant "checker: a look may have been at any instant" $common/looks.rs \
    'self.first.after <= other.last.before' 'self.first.before <= other.last.after' \
    $history invariant_12
mutant "checker: two guards may be valid at once" $common/looks.rs \
    'if !self.forgot_between(span.guard, other.guard) {' 'if false {' $history invariant_12
mutant "checker: a loss excuses whatever is seen" $common/looks.rs \
    'self.forgot(one.0, from, to)' 'self.forgot(one.0, 0, u64::MAX)' $history invariant_12
mutant "checker: a guard may turn valid again" $common/looks.rs \
    'look.before >= invalid.after' 'false' $history invariant_12
mutant "checker: looks are not held against the record" $common/looks.rs \
    'self.valid(guard, last.at, last);' '' $history invariant_6_seen

mutant "failover: the sentinels are not listened to" src/store/redis.rs \
    '.and_then(|sentinels| sentinels.follow(places).ok())' '.and_then(|sentinels| sentinels.follow(places).ok()).filter(|_| false)' \
    -p proof --test it after_a_switch
mutant "failover: a sentinel that is behind is believed" src/store/redis/sentinels.rs \
    'if epoch < self.epoch {
            return false;
        }
        if epoch > self.epoch {' 'if epoch != self.epoch {' -p proof --test it failover
mutant "cluster: nobody looks for moved slots" src/store/redis.rs \
    'looks.boxed(),' '' -p proof --test it a_subscription_moves
mutant "cluster: what is asked elsewhere is the end of the client" src/store/redis.rs \
    'max_attempts: Some(2),' 'max_attempts: Some(1),' -p proof --test it cluster::
mutant "failover: only the nodes of the URL are dialled" src/store/redis/connection.rs \
    'hosts.push(master);' 'drop(master);' -p proof --test it the_nodes_of_the_url

mutant "decoders: zeros in front of a number" src/store/record/codec.rs \
    "[] | [b'0', _, ..] => None" '[] => None' -p proof --test it what_is_accepted
mutant "decoders: a cause without an attempt" src/store/record/codec.rs \
    '(0, _) => return Err(Malformed("previous")),' '' -p proof --test it the_scripts_leave_alone
mutant "decoders: the end of a label is not looked at by the scripts" $lua/record.lua \
    'string.byte(text, p2 - 1) == 10 and ' '' -p proof --test it the_scripts_leave_alone
mutant "decoders: the scripts count past what they can write" $lua/record.lua \
    '#ends < 15 and ' '' -p proof --test it the_scripts_leave_alone

sweep="--test it operations::"
mutant "cancellation: build is dropped as it is" src/builder/server.rs \
    'let connecting = tokio::spawn(connecting);' \
    'let connecting = async { Ok::<_, tokio::task::JoinError>(connecting.await) };' ${sweep}redis::build
mutant "cancellation: a grant that is not looked at is kept" src/hub.rs \
    'Ok(update) => drop(update),' 'Ok(update) => std::mem::forget(update),' ${sweep}memory::acquire_as_successor
mutant "cancellation: a subscription stays" src/hub/run/subscription.rs \
    'self.effects.push(Effect::Unwatch);' '' ${sweep}redis::acquire_as_waiter
mutant "cancellation: a renewal goes with its future" src/hub/task.rs \
    'Message::Renew(renewal) => {' 'Message::Renew(renewal) if renewal.reply.is_closed() => {}
            Message::Renew(renewal) => {' ${sweep}memory::extend

mutant "stream: a grant is given before its event is taken" src/acquire.rs \
    'grant.hold();' 'grant.hold(); grant.give();' --test it a_grant_behind
mutant "stream: a grant is confirmed when its event is taken" src/acquire.rs \
    'grant.hold();' 'let _ = &mut grant;' --test it who_takes_long

mutant "stream: a lost grant is yielded" src/acquire.rs \
    '(State::Granted { .. }, Update::Lost) => State::Idle,' '' $hub::a_grant_lost_behind
mutant "stream: a grant is yielded however late" src/acquire.rs \
    ') if grant.is_doubtful() => {' ') if false => {' $hub::a_grant_whose_lease

mutant "adapters: a panic keeps the guard" src/stream_ext/run.rs \
    'if std::thread::panicking()' 'if false' --test it adapters::
mutant "adapters: who has a clone keeps the guard" src/stream_ext/run.rs \
    'self.0.abandon();
    }
}

/// Work that' '}
}

/// Work that' --test it adapters::
mutant "adapters: a lost lease does not stop the work" src/stream_ext/run.rs \
    'match lost.poll(cx) {' 'match { drop(lost); Poll::<()>::Pending } {' --test it adapters::
mutant "adapters: a cut stream is waited for" src/event.rs \
    'None => Outcome::Left,' 'None => return None,' --test it adapters::

mutant "jobs: what is due waits for what is new" src/claim_ext/claim_each.rs \
    'this.later.due().is_some_and(|due| due <= now)' 'false' --test it an_endless
mutant "jobs: what others work on is looked at all the time" src/claim_ext/claim_each.rs \
    'let until = Instant::now() + locked.remaining;' 'let until = Instant::now() + locked.remaining / 100;' \
    --test it what_is_renewed
mutant "jobs: more than there are places" src/claim_ext/claim_each.rs \
    'full && waiting.is_none()' 'false' --test it no_more_guards
mutant "jobs: a failed job is forgotten" src/claim_ext/claim_each.rs \
    'Step::Again => this.later.push(Instant::now(), job, worker),' 'Step::Again => drop((job, worker)),' \
    --test it alone
mutant "jobs: a place is kept for what others work on" src/claim_ext/claim_each.rs \
    'Stage::Waiting { until } => Some(until),' 'Stage::Waiting { .. } => None,' \
    --test it what_others
mutant "jobs: a job comes again when its guard is refused" src/claim_ext/claim_each.rs \
    'Stage::Ours => Step::Over,' 'Stage::Ours => Step::Failed(error),' --test it a_settlement
mutant "jobs: a worker that has stopped takes all there is" src/claim_ext/claim_each.rs \
    '*this.stopped = true;' '' --test it a_worker_that_has_stopped
mutant "jobs: what was put off goes with its worker" src/claim_ext/claim_each.rs \
    'return Poll::Ready(left);' 'return Poll::Ready(left.filter(|_| false));' --test it a_worker_that_has_stopped

mutant "observers: what is missed is not looked at" src/hub/run/claims.rs \
    'if !self.refresh_again {' 'if false {' $hub::observers::a_watcher_reads_after
mutant "observers: an old answer says that nothing is there" src/hub/run/observers.rs \
    '.is_none_or(|shown| asked.is_some_and(|asked| asked > shown))' '.is_none_or(|_| true)' \
    $hub::observers::an_overtaken_answer
mutant "observers: what is not there is asked for over and over" src/hub/run/observers.rs \
    'looked.map_or(view.heard, |looked| looked.max(view.heard))' 'view.heard' $hub::observers::a_watcher_reads_after
mutant "observers: seen before it is heard" src/hub/run/observers.rs \
    'if !self.is_about_to_hear()' 'if true' $hub::observers::a_watcher_gets_every_record
mutant "observers: looks with each try to subscribe" src/hub/run/subscription.rs \
    'if self.observers.have_seen_nothing() {' 'if true {' $hub::observers::subscription_retries
mutant "observers: nothing is seen after an outage" src/hub/run/observers.rs \
    'observer.shown = None;' '' $hub::observers::an_outage
mutant "observers: an outcome is shown for ever" src/hub/run/observers.rs \
    'self.observers.forgotten.into_iter().chain(audit).min()' 'audit.into_iter().min()' --test it watch_tells_that
mutant "observers: nobody subscribes for them" src/hub/run/subscription.rs \
    '(wanted || !self.observers.is_empty())' 'wanted' --test it a_watch_that
mutant "clear: the fencing token stays" src/store/redis/clear.lua \
    '  rise(r)' '' --test it what_is_cleared
mutant "clear: the holder is told that it has expired" src/store/record.rs \
    'None if record.attempt < attempt => LeaseLost::RecordGone,' '' --test it clear_makes
observed="-p proof --test it observability::"
mutant "observe: who has left waits for ever" src/telemetry.rs \
    'open.waits(false);
            count!' 'count!' $observed waiting_streams
mutant "observe: whose turn it is waits" src/telemetry.rs \
    'open.waits(false);
        let span' 'let span' $observed waiting_streams
mutant "observe: who hears of another holder waits twice" src/telemetry.rs \
    'if waits != self.waiting {' 'if true {' $observed waiting_streams
mutant "observe: a stream that nobody polled took part" src/acquire.rs \
    'observed: Participation::default(),' \
    'observed: { let mut all = Participation::default(); all.begin(&Key::new("job").unwrap(), ""); all },' \
    $observed waiting_streams
mutant "observe: work is outside of its span" src/guard.rs \
    'self.begin(|| work) => Ok(output)' 'work => Ok(output)' $observed a_failed_then_completed
mutant "observe: work begins outside of its span" src/telemetry.rs \
    'let work = span.in_scope(work);' 'let work = work();' $observed the_work_of_once
mutant "observe: work is nobody's" src/telemetry.rs \
    'parent: &open.span,' 'parent: None,' $observed a_failed_then_completed
mutant "observe: an end is told within whatever is current" src/telemetry.rs \
    'event!($level, parent: &given.span, "settled"' 'event!($level, "settled"' $observed a_failed_then_completed
mutant "observe: an outage is told within whatever is current" src/telemetry.rs \
    'event!(WARN, parent: None, "outage"' 'event!(WARN, "outage"' $observed an_outage
mutant "observe: a resync is told within whatever is current" src/telemetry.rs \
    'event!(INFO, parent: None, "resync"' 'event!(INFO, "resync"' $observed an_outage
mutant "observe: an outage is told for each key" src/telemetry.rs \
    'self.0.fetch_add(1, Ordering::Relaxed) == 0' 'self.0.fetch_add(1, Ordering::Relaxed) < 9' $observed an_outage
mutant "observe: an outage is over with the first key" src/telemetry.rs \
    'self.0.0.load(Ordering::Relaxed) == 1' 'true' $observed an_outage
mutant "observe: a span stays open with its stream" src/telemetry.rs \
    'if let Some(mut open) = self.0.take() {' 'if let Some(open) = &mut self.0 {' $observed a_failed_then_completed
mutant "observe: a hand-over is timed until it is heard of" src/telemetry.rs \
    'measure!(HANDOFF, freed.elapsed());' 'measure!(HANDOFF, freed.elapsed() * 0);' $observed a_failed_then_completed
mutant "observe: nobody tells of a lease's end" src/lease.rs \
    'observe::ended(self, reason);' 'let _ = reason;' $observed the_end_of_a_lease
mutant "observe: what is lost was completed" src/hub/run/grants.rs \
    'observe::settled(&settling.lease, &result, &update);' 'observe::settled(&settling.lease, &Ok(()), &update);' \
    $observed the_end_of_a_lease
mutant "startup: any policy will do" src/builder/warning.rs \
    '"noeviction"' '"allkeys-lru"' $observed startup
mutant "startup: replicas are like others" src/builder/warning.rs \
    '"slave"' '"none"' $observed startup::a_replica
mutant "startup: one node is asked for all" src/store/redis.rs \
    'cluster_node,' 'cluster_node: cluster_node.filter(|_| false),' $observed startup::in_a_cluster
mutant "startup: sentinels are taken for the master" src/store/redis.rs \
    'self.subscriber.first().or(hosts.first())' 'hosts.first()' $observed startup::behind_sentinels
mutant "startup: what is not permitted ends it" src/store/redis.rs \
    'Some((address, info.ok()?))' 'Some((address, info.unwrap()))' $observed startup::a_user
mutant "startup: an old server is one that refuses" src/builder/server.rs \
    '(source @ Error::Refused { .. }, Some((server, version)))' \
    '(source @ Error::WrongType { .. }, Some((server, version)))' $observed startup::an_old

mutant "cluster: the beats of one node are those of all" src/store/redis/path.rs \
    'if nodes.insert(node.clone()) {' 'if nodes.insert(node.clone()) && nodes.len() == 1 {' \
    -p proof --test it secured::in_a_cluster

silence="-p proof --test it silence::"
connection=src/store/redis/connection.rs
mutant "silence: not looked into" $connection \
    'let due = oldest + self.bound;' 'let due = oldest + 100 * self.bound;' ${silence}silent_commands
mutant "silence: the subscriber owes nothing" $connection \
    'self.owing(self.lane(slot), subscribing).await.map(drop)' 'subscribing.await.map(drop)' \
    ${silence}a_silent_subscriber
mutant "silence: what was given up is forgotten" $connection \
    'owed.settled = !answer.as_ref().is_err_and(gave_up);' 'owed.settled = answer.as_ref().is_err_and(gave_up) || true;' \
    ${silence}the_bound
mutant "silence: a stalled server is dead" $connection \
    'return Verdict::Away;' 'return Verdict::Dead;' ${silence}a_stopped_server
mutant "silence: the old connection is not asked" $connection \
    '_ => {}
        }
    }

    /// The configuration of a client for the very' '_ => pending().await,
        }
    }

    /// The configuration of a client for the very' ${silence}a_blocked_runtime
mutant "silence: the client is told, and hangs in a write" $connection \
    'old.abort();
                    let _ = old.await;
                    router = Some(self.drive());' 'self.reconnect_the_callers().await;
                    router = Some(old);' ${silence}a_silent_connection_with
mutant "silence: the callers client is left alone" $connection \
    'let _ = timeout(COMMAND_TIMEOUT, self.client.force_reconnection()).await;' '' ${silence}a_silent_client
mutant "silence: a master that was replaced is waited for" $connection \
    'told.any(|masters| !away' 'told.any(|masters| masters.is_empty() && !away' ${silence}a_stopped_master
mutant "silence: a request between two tasks is the end" $connection \
    'details == DROPPED || GONE.contains(&details)' 'details == DROPPED' ${silence}a_silent_connection_with
mutant "silence: an answer counts for its slot only" $connection \
    'self.shared.share_answers(&nodes);' '' ${silence}waits_behind
mutant "path: connections that stay apart are made anew without rest" src/store/redis/path.rs \
    'if self.again.is_some_and(|again| now < again) {' 'if false {' \
    --lib connections_that_stay_apart
mutant "path: a beat that is not heard is no news" src/store/redis/path.rs \
    'subscriber.renew();' '' ${silence}when_the_address
mutant "path: the commands stay where they are" src/store/redis/path.rs \
    'commands.renew();' '' ${silence}when_the_address
mutant "database: one channel for all" src/store/redis.rs \
    'Some(database @ 1..) if' 'Some(database @ 200..) if' -p proof --test it databases::
mutant "database: SELECT by hand is believed" src/store/redis.rs \
    '(selected != configured).then_some' 'false.then_some' -p proof --test it databases::a_client
mutant "build: what a waiter needs is not looked at" $lua/inspect.lua \
    "{ 'SSUBSCRIBE', line }, { 'SUNSUBSCRIBE', line }," '' -p proof --test it one_permission_less
mutant "build: a password is written as it is" $connection \
    'needing.for_each(|text| *text = quoted(text));' 'drop(needing);' -p proof --test it a_password_may
mutant "build: the end of a password is shown" src/builder/server.rs \
    "Some((secret, _)) if secret.contains(['?', '#']) => return scheme + \"…\"," '' --test it a_url_is_checked
mutant "close: QUIT after the end" $connection \
    'self.0.driver.abort();' 'let (inner, keeper) = (self.0.client.clone(), self.0.driver.abort_handle()); tokio::spawn(async move { keeper.abort(); tokio::task::yield_now().await; let _ = inner.quit().await; });' \
    -p proof --test quiet
mutant "result: none is large" src/store/redis.rs \
    'payload.len() > LARGE' 'payload.len() > 1_000 * LARGE' $observed a_large_result

cli=cli/src
shell="-p locking-worker --test cli"
mutant "cli: the command survives a lost lease" $cli/run.rs \
    'child.stop(Signal::SIGKILL);
                    kill_at = Some(Instant::now() + KILL_AGAIN);
                    stopped' 'stopped' $shell the_command_is_gone
mutant "cli: the command is not asked before it is killed" $cli/run.rs \
    'child.stop(Signal::SIGTERM);' '' $shell the_command_is_gone
mutant "cli: SIGTERM is a failure" $cli/run.rs \
    'Verdict::HandOff(signal.to_string(), Exit::Signal(signal))' 'Verdict::Fail(signal.to_string())' \
    $shell sigterm_hands_off
mutant "cli: SIGTERM is for ourselves only" $cli/run.rs \
    'Signal::SIGTERM => {
                            child.stop(signal);' 'Signal::SIGTERM => {' $shell a_second_sigterm_ends
mutant "cli: what was interrupted is done" $cli/run.rs \
    '(_, Some(signal @ Signal::SIGTERM))' '(_, Some(signal @ Signal::SIGTERM)) if !ended.status.success()' \
    $shell what_sigterm_interrupts
mutant "cli: what takes too long is done if it says so" $cli/run.rs \
    '(_, Some(signal @ Signal::SIGTERM)) => {' \
    '(Some(Stopped::TooLong(_)), _) if ended.status.success() => Verdict::Done,
            (_, Some(signal @ Signal::SIGTERM)) => {' $shell a_command_that_takes_too_long
mutant "cli: what the command has started goes on" $cli/process_tree.rs \
    'tree.extend(children.map(|stat| stat.pid));' 'tree.extend(children.map(|stat| stat.pid).take(0));' \
    $shell all_that_the_command
mutant "cli: who has left its parent goes on" $cli/child.rs \
    'set_child_subreaper(true)?;' '' $shell all_that_the_command
mutant "cli: an interrupted command has failed" $cli/run.rs \
    '(None, Some(signal)) => Verdict::HandOff(signal.to_string(), Exit::Signal(signal)),' \
    '(None, Some(_)) => Verdict::Fail(child::ended(ended.status)),' $shell whoever_interrupts
mutant "cli: deaf while the server is waited for" $cli/run.rs \
    'signal = self.signals.end() => {
                    if' 'signal = std::future::pending::<Signal>() => {
                    if' $shell a_second_sigterm_does_not_wait
mutant "cli: 127 is a failure" $cli/child.rs 'Some(126 | 127)' 'Some(126)' $shell who_cannot_execute
mutant "cli: a full disk is a success" $cli/print.rs \
    'error.kind() != ErrorKind::BrokenPipe' 'false' $shell what_cannot_be_written
mutant "cli: Ctrl-C reaches the command twice" $cli/signals.rs \
    'keys && File' 'false && keys && File' $shell ctrl_c_reaches
mutant "cli: done elsewhere is done here" $cli/run.rs \
    'if holder == self.label && self.succeeded == Some(attempt) {' 'if true {' $shell done_elsewhere
mutant "cli: two codes are swapped" $cli/exit.rs \
    'Exit::DoneElsewhere => 3,
            Exit::GaveUp => 4,' 'Exit::DoneElsewhere => 4,
            Exit::GaveUp => 3,' $shell the_exit_code_says
mutant "cli: given up is a failure of ours" $cli/run.rs \
    'return Exit::GaveUp;' 'return Exit::Failed;' $shell given_up
mutant "cli: what is lost has failed" $cli/run.rs \
    'true => Exit::Lost,' 'true => Exit::Failed,' $shell the_lease_was_lost
mutant "cli: signals are kept" $cli/run.rs \
    'signal => child.send(signal),' '_ => {}' $shell other_signals
mutant "cli: a short hand-over is the end of a lease" $cli/run.rs \
    'let reserve = grace.min(whole / 3);' 'let reserve = grace.min(Duration::from_secs(3));' $shell a_fleet_tries
mutant "cli: the command outlives us" $cli/child.rs \
    'set_pdeathsig(Signal::SIGKILL)' 'set_pdeathsig(None)' $shell the_command_dies
mutant "cli: what is another's is left in the environment" $cli/child.rs \
    'None => command.env_remove(name),' 'None => &mut command,' $shell is_told_of_its_attempt

standstill="-p proof --test standstill"
mutant "keeper: works on the hub's runtime" src/builder/server.rs \
    'Keeper::apart(runtime, connect' 'Keeper::apart({ drop(runtime); runtime::Handle::current() }, connect' \
    $standstill a_blocked_runtime_costs
mutant "keeper: told by way of the hub" src/hub.rs \
    'self.hub.keeper.keep(&self.lease);' \
    'let (keeper, lease) = (self.hub.keeper.clone(), self.lease.clone()); tokio::spawn(async move { keeper.keep(&lease) });' \
    $standstill one_blocked_thread
mutant "keeper: a completion that waits is not kept" src/lease.rs \
    'Some(LeaseLost::Settled) => self.term().completing,' 'Some(LeaseLost::Settled) => false,' $standstill work_done_in
mutant "keeper: keeps for a runtime that hangs" src/keeper.rs \
    '(silence > lease.terms.stall_limit).then_some(silence)' '(silence > 1_000 * lease.terms.stall_limit).then_some(silence)' \
    $standstill a_runtime_that_hangs
mutant "keeper: does not settle for a hub that has gone" src/hub.rs \
    'self.keeper.settle(&settlement.lease, settlement.outcome);' 'drop(settlement);' $standstill a_guard_dropped_after
mutant "keeper: a stop is no stall" src/lease.rs \
    'Some(due) => LeaseLost::Stalled {
                    time: now.saturating_since(due),
                },' 'Some(_) => LeaseLost::Expired,' $standstill a_process_stopped
mutant "keeper: told nowhere" src/keeper.rs \
    'let run = observers.follow(run);' 'drop(observers);' -p proof --test it a_lease_that_the_keeper
mutant "clock: stands still while the machine sleeps" src/clock.rs \
    'ClockId::CLOCK_BOOTTIME' 'ClockId::CLOCK_MONOTONIC' $standstill a_machine_that_slept_is_told
mutant "clock: a sleep is noticed by timers only" src/hub/task.rs \
    'leases > timers + STOOD_STILL || has_paused' 'has_paused' $standstill a_machine_that_slept_is_told
mutant "clock: a pause is not told by the wall clock" src/lease.rs \
    'true => outrun,' 'true => Duration::ZERO,' $standstill a_paused_virtual_machine_holds
mutant "clock: a wall clock that is set costs the lease" src/keeper.rs \
    'self.notice_pause(now);' '' $standstill a_wall_clock_set
mutant "clock: Tokio's, with a real server" src/builder/server.rs \
    'Handle::spawn(store, inbox, Clock::Machine, keeper)' 'Handle::spawn(store, inbox, Clock::tokio(), keeper)' \
    $standstill a_paused_clock
mutant "lease: a forked child has the work" src/lease.rs \
    'std::process::id() != self.process' 'false' $standstill a_forked_child
mutant "lease: valid again after it was not" src/lease.rs \
    'if left.is_zero() && given {
            self.expire();
        }' '' --lib lease::tests::a_guard_that_has_said
mutant "lease: no margin but the least" src/terms.rs \
    'share.max(term / 100 + Duration::from_millis(3))' 'term / 100 + Duration::from_millis(3)' -p proof --test it observability:: \
    --features tracing,metrics the_end_of_a_lease
mutant "keeper: after a long term too late" src/lease.rs \
    'let due = term
            .ends
            .saturating_sub(lease.saturating_sub(every + margin));' \
    'let due = term
            .server_ends
            .saturating_sub(lease.saturating_sub(every + margin));' --lib extended_for_long
mutant "keeper: without a connection nothing renews" src/keeper.rs \
    '(self.tell)(News::Due(lease));' '' -p proof --test it takes_no_more_clients
mutant "keeper: a pause that the server says nothing of is passed over" src/keeper.rs \
    'has_paused && tried && lease.remaining().is_zero()' 'false' $standstill a_paused_virtual_machine_is_told
mutant "clock: a pause is told to the one who looks only" src/hub/task.rs \
    'leases > timers + STOOD_STILL || has_paused' 'leases > timers + STOOD_STILL' $standstill a_paused_virtual_machine_is_told
mutant "lease: restarts that were lost hide the next" src/lease.rs \
    'restart <= term.restart && asked.moment <= term.answered' 'restart <= term.restart' --lib restarts_that_the_server_has_lost
mutant "outage: told again to a stream that rejoins" src/acquire.rs \
    'if self.outage.replace(outage) != Some(outage) {' 'if self.outage.replace(outage).is_none_or(|_| true) {' \
    -p proof --test it an_outage_that_costs
mutant "outage: a lease that is lost ends it" src/hub/run/outage.rs \
    'if let Some((id, _)) = self.present_outage() {' 'if let Some(id) = None {' -p proof --test it an_outage_that_costs
mutant "claim: a record without time to live never ends" $lua/claim.lua \
    'if forgotten(r) then' 'if false then' -p proof --test it a_record_that_never_expires
mutant "record: one without time to live is shown for ever" src/store/record/codec.rs \
    'record.forgotten_at() > at / 1_000' 'true' -p proof --test it a_record_that_never_expires
mutant "settle: a hand-off hides the failure" $lua/settle.lua \
    "if r.cause == '-' or r.cause == 'handed_off' then" 'if true then' --test it redis::a_failure_and_its_reason
mutant "settle: a hand-off after a failure is told as lost" src/hub/run/grants.rs \
    'if cause == Cause::HandedOff && previous.attempt < lease.attempt {' 'if false {' $hub::a_hand_off_after_a_failure_is_ok
mutant "keeper: any answer ends an outage of renewals" src/hub/run/outage.rs \
    'if !self.grants.iter().any(fails) {' 'if !self.grants.iter().any(fails) || true {' \
    --lib renewal::an_outage_of_renewals
mutant "keeper: an outage of renewals never ends" src/hub/run/outage.rs \
    'if !self.grants.iter().any(fails) {' 'if false && !self.grants.iter().any(fails) {' \
    --lib renewal::an_outage_of_renewals
mutant "keeper: a longer lease ends no outage of renewals" src/keeper.rs \
    'if is_served && !kept.asked' 'if false && is_served && !kept.asked' \
    --lib renewal::an_outage_of_renewals_ends
mutant "keeper: settled leases are kept until they are due" src/keeper.rs \
    'self.sweep();' '' --lib leases_that_are_settled
mutant "silence: what was answered is owed by a server that is away" $connection \
    'true => debt.since = debt.since.map(|_| Instant::now()),' 'true => debt.since = Some(Instant::now()),' \
    --lib what_was_answered_is_owed
mutant "settle: a late hand-off of an unconfirmed grant is told as done" src/hub/run/grants.rs \
    'return lease.is_counted() || lease' 'return true || lease' $hub::a_hand_off_that_was_too_late
mutant "settle: only a confirmed grant is handed off" src/hub/run/grants.rs \
    '|| lease.was_followed_in_time(record.fence)' '' $hub::a_hand_off_after_a_failure_is_ok
mutant "run: cut short, it has left" src/stream_ext/run.rs \
    '*this.recorded = outcome.take();' '*this.recorded = None;' --test it run_that_is_cut_short_tells
mutant "run: what came before the wait is told" src/stream_ext/run.rs \
    'if matches!(event, Some(LockEvent::Locked(_))) {' 'if false {' --test it run_that_is_cut_short_while

echo "$caught caught, ${#missed[@]} missed"
[ ${#missed[@]} -eq 0 ]
