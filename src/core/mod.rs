//! The reactor's mechanisms, pure: no socket, no thread, and the time is an argument. The one
//! function that reads the clock, [`Moment::now`], is for callers outside. See each file's head.

pub mod accept_gate;
pub mod address_policy;
pub mod bucket;
pub mod budget;
pub mod buffered;
pub mod deadlines;
pub mod disk_shares;
pub mod drain;
pub mod glitch;
pub mod id;
pub mod idle_list;
pub mod key;
pub mod lease;
pub mod network;
pub mod network_counts;
pub mod output;
pub mod places;
pub mod pool;
pub mod proxy_header;
pub mod readiness;
pub mod run_queue;
pub mod slots;
pub mod time;
pub mod wheel;

pub use key::Key;
pub use time::{Moment, UnixMillis, UnixSeconds};
