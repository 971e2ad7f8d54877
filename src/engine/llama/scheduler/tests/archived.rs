//! Sequences that are copied before they are lost, and loaded again.
//!
//! Mutations that these tests catch: `start` without `archive_slot`, or after `truncate`
//! (`lost_sequence_...`); `read` that does not skip jobs that load, or `pause` without them
//! (`job_that_waits_...`); `take_loaded` without its patience
//! (`prefix_that_does_not_come_...`); `leave_slot` without `end_load` (`job_that_ends_...`);
//! `take_copy` that believes a copy's length (`copy_of_another_prompt_...`); `copy_slot` without
//! the epoch (`sequences_of_before_...`); no bound on the copies of a step
//! (`few_copies_are_taken_...`); a load or a save that does not look at its cost
//! (`copy_that_would_take_too_long_...`); `archive_all` in another order, or after its time
//! (`last_used_sequences_...`); `keep_old` that does not wait, or asks again and again
//! (`sequence_that_rests_...`); `read` that does not take the copies' time off
//! (`streams_wait_no_longer_...`).

use std::cell::RefCell;
use std::rc::Rc;

use super::super::copying::Way;
use super::toy::*;
use crate::engine::prefixes::{Archive, Copied, Loaded, LoadedCopy, Wanted, Wish};
use crate::limits::prefixes as prefix_limits;

const LEAST: usize = 8;
const PROMPT: &str = "a long prompt of one tenant";

/// Keeps all copies, and lets the test decide when a load comes.
#[derive(Default)]
struct Shelf {
    epoch: u64,
    kept: Vec<Copied>,
    loads: Vec<(u64, Vec<Token>, Vec<u8>)>,
    ended: Vec<(u64, bool)>,
    skipped: usize,
    is_held_back: bool,
    is_full: bool,
    is_finished: bool,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Shelf>>);

impl Archive for Shared {
    fn epoch(&self) -> u64 {
        self.0.borrow().epoch
    }

    fn wish(&self, tenant: u64, tokens: &[Token]) -> Wish {
        let shelf = self.0.borrow();
        let is_there = |copied: &Copied| copied.tenant == tenant && copied.tokens == tokens;
        match shelf.kept.iter().any(is_there) {
            true => Wish::Nothing,
            false if shelf.is_full => Wish::Later,
            false => Wish::Copy,
        }
    }

    fn keep(&mut self, copied: Copied) {
        self.0.borrow_mut().kept.push(copied);
    }

    fn skip(&self) {
        self.0.borrow_mut().skipped += 1;
    }

    fn begin_load(&mut self, wanted: Wanted<'_>) -> Option<u64> {
        let mut shelf = self.0.borrow_mut();
        let Wanted {
            tenant,
            prompt,
            held,
            longest,
        } = wanted;
        let shared = |copied: &Copied| {
            let pairs = copied.tokens.iter().zip(prompt);
            pairs.take_while(|(one, other)| one == other).count()
        };
        let own = shelf.kept.iter().filter(|copied| copied.tenant == tenant);
        let own = own.filter(|copied| copied.tokens.len() <= longest);
        let copied = own.max_by_key(|copied| shared(copied))?;
        if shared(copied) < held + LEAST {
            return None;
        }
        let load = shelf.loads.len() as u64 + shelf.ended.len() as u64 + 1;
        let (tokens, state) = (copied.tokens.clone(), copied.state.clone());
        shelf.loads.push((load, tokens, state));
        Some(load)
    }

    fn poll_loaded(&mut self) -> Option<Loaded> {
        let mut shelf = self.0.borrow_mut();
        if shelf.is_held_back || shelf.loads.is_empty() {
            return None;
        }
        let (load, tokens, state) = shelf.loads.remove(0);
        let claimed = None;
        let copy = Some(LoadedCopy {
            tokens,
            state,
            claimed,
        });
        Some(Loaded { load, copy })
    }

    fn end_load(&mut self, load: u64, is_used: bool) {
        let mut shelf = self.0.borrow_mut();
        shelf.loads.retain(|(number, ..)| *number != load);
        shelf.ended.push((load, is_used));
    }

    fn await_room(&self, _: usize, is_over: &dyn Fn() -> bool) -> bool {
        !is_over()
    }

    fn finish(&mut self, _: &dyn Fn() -> bool) {
        self.0.borrow_mut().is_finished = true;
    }
}

fn host(sequences: usize, shared: &Shared) -> Host {
    let mut host = Host::new(sequences);
    host.scheduler.terms.archived_tokens_min = LEAST;
    host.scheduler.copying.sample_tokens_min = LEAST;
    host.scheduler.use_archive(Box::new(shared.clone()));
    host
}

/// Submits a prompt of a tenant; returns the request's number.
fn submit(host: &mut Host, tenant: u64, prompt: &str) -> usize {
    let request = host.submitted as usize;
    host.submit(Job {
        tenant,
        ..host.job(prompt, 4)
    });
    request
}

/// Runs the prompt on a host that then ends, so that only the archive has it.
fn archived() -> Shared {
    let shared = Shared::default();
    let mut before = host(1, &shared);
    submit(&mut before, 1, PROMPT);
    before.run();
    before.scheduler.archive_all(&|| false);
    assert_eq!(shared.0.borrow().kept.len(), 1);
    assert!(shared.0.borrow().is_finished);
    shared
}

#[test]
fn lost_sequence_serves_the_next_prompt_of_its_tenant_only() {
    let shared = Shared::default();
    let mut host = host(1, &shared);
    let other = "something else of the other tenant";
    let requests = [(1, PROMPT), (2, other), (1, PROMPT), (2, PROMPT)];
    let requests = requests.map(|(tenant, prompt)| {
        let request = submit(&mut host, tenant, prompt);
        host.run();
        assert_eq!(host.done(request).text, reference(prompt, 4));
        host.done(request).usage.cached_tokens as usize
    });
    assert_eq!(requests, [0, 0, PROMPT.len() - 1, 0]);
    assert_eq!(shared.0.borrow().ended, [(1, true)]);
    let gauges = host.scheduler.gauges();
    assert_eq!(gauges.prompt_cached_tokens as usize, PROMPT.len() - 1);
    let all = 3 * PROMPT.len() + other.len();
    assert_eq!(gauges.prompt_tokens as usize, all, "each token counts once");
}

#[test]
fn prefix_survives_the_engine_and_the_output_is_the_same() {
    let shared = archived();
    let mut host = host(2, &shared);
    let longer = format!("{PROMPT}, and more");
    let request = submit(&mut host, 1, &longer);
    host.run();
    assert_eq!(host.done(request).text, reference(&longer, 4));
    assert_eq!(
        host.done(request).usage.cached_tokens as usize,
        PROMPT.len()
    );
    assert_eq!(
        host.scheduler.backend.computed,
        longer.len() - PROMPT.len() + 3
    );
}

#[test]
fn job_that_waits_for_its_prefix_holds_up_no_other() {
    let shared = archived();
    shared.0.borrow_mut().is_held_back = true;
    let mut host = host(2, &shared);
    let loading = submit(&mut host, 1, PROMPT);
    host.scheduler.step();
    assert_eq!(host.scheduler.backend.computed, 0);
    assert!(
        host.scheduler.pause().is_some(),
        "there is nothing to compute"
    );
    // Others get the other slot, one after the other, and never that of the job that waits.
    let others = [2, 3, 4].map(|tenant| submit(&mut host, tenant, "another prompt"));
    while others.iter().any(|other| host.outcome(*other).is_none()) {
        assert!(host.scheduler.pause().is_none());
        host.scheduler.step();
    }
    assert_eq!(host.phase(0), Some(Phase::Prompt));
    shared.0.borrow_mut().is_held_back = false;
    host.run();
    assert_eq!(host.done(loading).text, reference(PROMPT, 4));
    assert_eq!(
        host.done(loading).usage.cached_tokens as usize,
        PROMPT.len() - 1
    );
}

#[test]
fn prefix_that_does_not_come_in_time_is_computed() {
    let shared = archived();
    shared.0.borrow_mut().is_held_back = true;
    let mut host = host(1, &shared);
    let request = submit(&mut host, 1, PROMPT);
    // More jobs than slots, all of them waiting: time passes, and the engine does not spin.
    submit(&mut host, 2, "x");
    let start = host.now();
    let mut steps = 0;
    while host.scheduler.backend.computed == 0 {
        host.step();
        steps += 1;
    }
    let patience = prefix_limits::LOAD_PATIENCE;
    assert!(host.now().since(start) >= patience);
    assert!(steps < 2 * patience.as_millis() / limits::CREDIT_POLL_INTERVAL.as_millis());
    host.run();
    assert_eq!(host.done(request).text, reference(PROMPT, 4));
    assert_eq!(host.done(request).usage.cached_tokens, 0);
    assert_eq!(shared.0.borrow().ended, [(1, false)]);
}

#[test]
fn job_that_ends_while_it_waits_gives_its_load_up() {
    let shared = archived();
    shared.0.borrow_mut().is_held_back = true;
    let mut host = host(2, &shared);
    let gone = host.job(PROMPT, 4);
    let ticket = gone.ticket.clone();
    host.submit(gone);
    let late = Job {
        deadline: host.now() + Duration::from_millis(100),
        ..host.job(PROMPT, 4)
    };
    host.submit(late);
    host.step();
    ticket.cancel(CancelReason::Disconnect);
    host.run();
    assert_eq!(
        host.failed(0).reason,
        FailReason::Cancelled(CancelReason::Disconnect)
    );
    assert_eq!(
        host.failed(1).reason,
        FailReason::Error(ErrorCode::GenerationTimeout)
    );
    assert_eq!(shared.0.borrow().ended, [(1, false), (2, false)]);
    assert_eq!(host.scheduler.backend.computed, 0);
}

#[test]
fn copy_of_another_prompt_is_not_believed() {
    let shared = archived();
    let mut host = host(1, &shared);
    let request = submit(&mut host, 1, PROMPT);
    host.step();
    // As if it had been exchanged on the way.
    for (_, tokens, state) in &mut shared.0.borrow_mut().loads {
        *tokens = "a long PROMPT".bytes().map(Token::from).collect();
        *state = tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
    }
    host.run();
    assert_eq!(host.done(request).text, reference(PROMPT, 4));
    assert_eq!(
        host.done(request).usage.cached_tokens as usize,
        "a long ".len()
    );
}

#[test]
fn sequences_of_before_a_purge_are_not_kept() {
    let shared = Shared::default();
    let mut host = host(2, &shared);
    submit(&mut host, 1, PROMPT);
    host.run();
    shared.0.borrow_mut().epoch += 1;
    submit(&mut host, 2, "computed after the purge");
    host.run();
    host.scheduler.archive_all(&|| false);
    let shelf = shared.0.borrow();
    let tenants: Vec<u64> = shelf.kept.iter().map(|copied| copied.tenant).collect();
    assert_eq!(tenants, [2]);
}

#[test]
fn sequence_that_rests_is_kept_once() {
    let shared = Shared::default();
    let mut host = host(2, &shared);
    let kept = || shared.0.borrow().kept.len();
    assert_eq!(host.scheduler.rest_at(), None);
    submit(&mut host, 1, PROMPT);
    host.run();
    let at = host.now() + prefix_limits::KEPT_AFTER;
    assert_eq!(host.scheduler.rest_at(), Some(at));
    host.scheduler.rest();
    assert_eq!(kept(), 0, "it may go on at once");
    // At first the room is used up.
    shared.0.borrow_mut().is_full = true;
    host.scheduler.backend.now.set(at);
    host.scheduler.rest();
    let again = at + prefix_limits::KEEP_RETRY_PAUSE;
    assert_eq!((kept(), host.scheduler.rest_at()), (0, Some(again)));
    shared.0.borrow_mut().is_full = false;
    host.scheduler.backend.now.set(again);
    host.scheduler.rest();
    assert_eq!((kept(), host.scheduler.rest_at()), (1, None));
    // Its tenant goes on from it, and another one runs beside the next rest.
    submit(&mut host, 1, &format!("{PROMPT}, and more"));
    host.run();
    assert_eq!(
        host.scheduler.rest_at(),
        Some(host.now() + prefix_limits::KEPT_AFTER)
    );
    let later = host.now() + prefix_limits::KEPT_AFTER;
    host.scheduler.backend.now.set(later);
    submit(&mut host, 2, "another long prompt");
    host.scheduler.step();
    assert_eq!(kept(), 2);
}

#[test]
fn last_used_sequences_are_kept_first_and_none_once_the_time_is_over() {
    let shared = Shared::default();
    let mut host = host(4, &shared);
    for tenant in 1..=4 {
        submit(&mut host, tenant, &format!("{tenant}: a long prompt"));
        host.run();
    }
    host.scheduler
        .archive_all(&|| shared.0.borrow().kept.len() == 2);
    let shelf = shared.0.borrow();
    let tenants: Vec<u64> = shelf.kept.iter().map(|copied| copied.tenant).collect();
    assert_eq!(tenants, [4, 3]);
}

#[test]
fn few_copies_are_taken_in_one_step() {
    let shared = Shared::default();
    let mut host = host(6, &shared);
    for round in ["first", "second"] {
        for tenant in 1..=6 {
            submit(
                &mut host,
                tenant,
                &format!("{tenant}: a {round} long prompt"),
            );
        }
        if round == "first" {
            host.run();
        }
    }
    host.scheduler.step();
    assert_eq!(
        shared.0.borrow().kept.len(),
        prefix_limits::COPIED_SEQUENCES_PER_STEP_MAX
    );
}

#[test]
fn copy_that_would_take_too_long_is_not_made() {
    let shared = archived();
    let mut host = host(1, &shared);
    let (now, took) = (host.now(), 2 * prefix_limits::COPY_TIME_MAX);
    for way in [Way::Save, Way::Restore] {
        host.scheduler.copying.handle_copy(way, LEAST, took, now);
    }
    // The last two of them displace a sequence that the archive lacks.
    for (tenant, prompt) in [
        (1, PROMPT),
        (2, "of the second tenant"),
        (3, "of the third"),
    ] {
        let request = submit(&mut host, tenant, prompt);
        host.run();
        assert_eq!(host.done(request).text, reference(prompt, 4));
        assert_eq!(host.done(request).usage.cached_tokens, 0);
    }
    let shelf = shared.0.borrow();
    assert!(shelf.loads.is_empty() && shelf.ended.is_empty());
    assert_eq!((shelf.kept.len(), shelf.skipped), (1, 1));
}

#[test]
fn streams_wait_no_longer_for_a_step_with_a_copy() {
    let shared = archived();
    let mut host = host(2, &shared);
    host.scheduler.backend.copy_time = TOKEN_TIME / 10;
    let reading = submit(&mut host, 2, "a long prompt that is read meanwhile");
    let loading = submit(&mut host, 1, PROMPT);
    let budget = TOKEN_TIME * CHUNK as u32 + TOKEN_TIME / 2;
    while host.outcome(loading).is_none() {
        let start = host.now();
        host.scheduler.step();
        assert!(host.now().since(start) <= budget);
    }
    host.run();
    assert_eq!(
        host.done(loading).usage.cached_tokens as usize,
        PROMPT.len() - 1
    );
    assert_eq!(host.done(reading).usage.cached_tokens, 0);
}
