//! Redis: one thread that holds the connections, for the cache, the limits of keys and the bus.
//!
//! Owns the way to the servers: finding them, the connections, pipelines, timeouts, and what
//! happens when they are lost. Must never block a caller, and knows nothing of what it stores. A
//! request that cannot be served fails; it is its user who decides what that means.
//!
//! ```text
//!   reactors, engine ---> queue, bounded ---> thread "redis" ---> servers
//!                        (requests, bytes)      |   all waiting requests in one pipeline
//!                                               '-> reply, on this thread
//! ```

// In reading order.
pub mod breaker;

pub mod slots;

pub mod request;

pub mod dial;

pub mod servers;

pub mod link;

pub mod sweep;

pub mod metrics;

pub use dial::{Dialer, Settings};
pub use link::{Handle, Link, Refused};
pub use request::{Reply, Request};
pub use sweep::delete_matching;
