//! Durable jobs: generations that are kept in the store, and run without a client that waits.
//!
//! Owns their terms: what a job is asked for, the states of its life, its events. Pure: no store,
//! no thread, no clock. Times are milliseconds since 1970, because they outlive the process.
//!
//! In reading order:
//!
//! * [`life`]: its states, and who may change them;
//! * [`event`]: the history that clients follow;
//! * [`request`]: what it generates, and how that ended;
//! * [`callback`]: the report of its end to a server, and [`webhook`]: its signature;
//! * [`record`]: all of it, as it is stored;
//! * [`acceptance`]: what a request for a job may get;
//! * [`turns`]: which key's job runs next.
//!
//! The engine has jobs too, which live in memory. A durable job becomes one of those for each
//! attempt to run it.

pub mod acceptance;
pub mod callback;
pub mod event;
pub mod life;
pub mod record;
pub mod request;
pub mod turns;
pub mod webhook;

pub use crate::core::id::JobId;
pub use acceptance::{Acceptance, Bound, Bounds, Candidate, RememberedJob};
pub use callback::{Callback, CallbackState, CallbackTerms, Outcome};
pub use event::{EventId, EventKind, JobEvent};
pub use life::{Fenced, Life, Opening, State, TakenBack};
pub use record::{Idempotency, JobRecord, JobSummary, JobTotals, NewJob};
pub use request::{Completion, Ending, Failure, File, JobRequest};
pub use turns::{WaitingKey, next_turns};
pub use webhook::{SECRET_BYTES, WebhookSecret, signatures};
