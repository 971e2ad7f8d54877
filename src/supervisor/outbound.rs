//! The daemon's own connections to other servers, as a part: the authorities that their
//! certificates are checked against, the threads that resolve names, and the one [`Fetcher`] of all
//! parts that send requests. There is one because it counts the fetches of all.
//!
//! Owns the threads. The reactors ask them until their own ends, so a drain does not concern them.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::exit;
use crate::limits::outbound as limits;
use crate::offload::Workers;
use crate::offload::fetch::Fetcher;
use crate::offload::resolver::Resolver;
use crate::os::names::look_up;
use crate::os::process::thread_cpu_time;
use crate::reactor::message::Mailboxes;
use crate::reactor::outbound;
use crate::tls::Connector;

pub struct OutboundThreads {
    resolver: Arc<Workers>,
    threads: Vec<JoinHandle<()>>,
}

impl Part for OutboundThreads {
    fn start(birth: &mut Birth) -> Result<OutboundThreads, Failure> {
        let credentials = birth.sources.credentials_dir();
        let authorities = birth.config.outbound.ca.as_deref();
        let connector = Connector::load(authorities, credentials.as_deref())
            .map_err(|problem| Failure::new(exit::CONFIG, problem.to_string()))?;
        let mailboxes = birth.spawner.as_ref().map(|spawner| spawner.mailboxes());
        let door = Arc::new(Mailboxes(mailboxes.unwrap_or_default()));
        birth.fetcher = Some(Fetcher::new(door));
        let resolver = Resolver::new(look_up, birth.metrics.series());
        let mut part = OutboundThreads {
            resolver: resolver.threads().clone(),
            threads: Vec::new(),
        };
        for index in 0..limits::RESOLVER_THREADS {
            let resolver = part.resolver.clone();
            let thread = thread::Builder::new()
                .name(format!("resolver-{index}"))
                .stack_size(limits::RESOLVER_STACK_BYTES)
                .spawn(move || resolver.work(thread_cpu_time))
                .map_err(|error| Failure::os("starting a thread", &error))?;
            part.threads.push(thread);
        }
        let reactors = usize::from(birth.config.server.reactors);
        birth.outbound = Some(outbound::Parts {
            resolver,
            connector: Arc::new(connector),
            sockets_most: (birth.outbound_sockets / reactors).max(limits::SOCKETS_PER_REACTOR_MIN),
        });
        Ok(part)
    }

    /// Does not wait for a thread that waits for a silent name server: nothing waits for its
    /// result any more, and the process ends it.
    fn join(&mut self) -> bool {
        self.resolver.close();
        let ended = self.threads.extract_if(.., |thread| thread.is_finished());
        ended.fold(true, |is_good, thread| is_good & thread.join().is_ok())
    }
}

impl Drop for OutboundThreads {
    fn drop(&mut self) {
        // A start that has failed after this part.
        self.join();
    }
}
