//! Tokens that are computed once and used again.

use super::toy::*;

#[test]
fn prefix_is_reused_within_the_tenant_only() {
    let mut host = Host::new(3);
    let prompt = "the same long prompt";
    host.submit(Job {
        tenant: 1,
        ..host.job(prompt, 4)
    });
    host.run();
    host.submit(Job {
        tenant: 2,
        ..host.job(prompt, 4)
    });
    host.run();
    host.submit(Job {
        tenant: 1,
        ..host.job(prompt, 4)
    });
    host.run();
    let cached = |request| host.done(request).usage.cached_tokens as usize;
    assert_eq!([cached(0), cached(1), cached(2)], [0, 0, prompt.len() - 1]);
    let gauges = host.scheduler.gauges();
    assert_eq!(gauges.prompt_cached_tokens as usize, prompt.len() - 1);
    assert!((0..3).all(|request| host.done(request).text == reference(prompt, 4)));
    // A conversation goes on from the generated text, too.
    let next = format!("{prompt}{}, and then", host.done(2).text);
    host.submit(Job {
        tenant: 1,
        ..host.job(&next, 4)
    });
    host.run();
    assert!(host.done(3).usage.cached_tokens as usize > prompt.len());
    assert_eq!(host.done(3).text, reference(&next, 4));
}

#[test]
fn own_words_are_shared_by_all_tenants_and_nothing_else_is() {
    let mut host = Host::new(4);
    for tenant in 0..4 {
        host.submit(Job {
            tenant,
            ..host.code("python", "same words")
        });
        host.run();
    }
    let own = own_words("python").len() as u32;
    assert_eq!(host.done(0).usage.cached_tokens, 0);
    for request in 1..4 {
        let done = host.done(request);
        assert_eq!(done.usage.cached_tokens, own);
        assert_eq!(done.text, host.done(0).text);
    }
}

#[test]
fn slot_that_was_not_used_for_longest_is_taken() {
    let mut host = Host::new(2);
    for (tenant, prompt) in [
        (1, "first tenant"),
        (2, "second tenant"),
        (3, "third tenant"),
    ] {
        host.submit(Job {
            tenant,
            ..host.job(prompt, 2)
        });
        host.run();
    }
    // The third has displaced the first, not the second.
    host.submit(Job {
        tenant: 2,
        ..host.job("second tenant", 2)
    });
    host.submit(Job {
        tenant: 1,
        ..host.job("first tenant", 2)
    });
    host.run();
    assert_eq!(
        host.done(3).usage.cached_tokens as usize,
        "second tenant".len() - 1
    );
    assert_eq!(host.done(4).usage.cached_tokens, 0);
}

/// Mutation that this test catches: slots taken by their last use alone.
#[test]
fn sequences_that_run_together_are_neighbours() {
    let mut host = Host::new(6);
    // All slots were used, in this order: 0 to 5.
    for tenant in 0..6 {
        host.submit(Job {
            tenant,
            ..host.job(&talkative(tenant as usize + 1), tenant as u32 + 1)
        });
    }
    host.run();
    // Slot 0 is the least recently used one; the next ones lie beside those that run.
    let running =
        |host: &Host| -> Vec<usize> { (0..6).filter(|slot| host.phase(*slot).is_some()).collect() };
    for expected in [vec![0], vec![0, 1], vec![0, 1, 2]] {
        host.submit(Job {
            tenant: 9,
            ..host.job(&talkative(30), 30)
        });
        host.scheduler.step();
        assert_eq!(running(&host), expected);
    }
    // A gap is filled before the row grows.
    host.scheduler.slots[1]
        .run
        .as_ref()
        .unwrap()
        .job()
        .ticket
        .cancel(CancelReason::Disconnect);
    host.scheduler.step();
    assert_eq!(running(&host), [0, 2]);
    host.submit(Job {
        tenant: 8,
        ..host.job(&talkative(30), 30)
    });
    host.scheduler.step();
    assert_eq!(running(&host), [0, 1, 2]);
}

#[test]
fn model_that_cannot_be_cut_begins_again() {
    let mut host = Host::new(1);
    host.scheduler.backend.can_be_cut = false;
    for _ in 0..2 {
        host.submit(host.job("prompt", 6));
        host.run();
    }
    assert_eq!(host.done(1).usage.cached_tokens, 0);
    assert_eq!(host.done(1).text, reference("prompt", 6));
}
