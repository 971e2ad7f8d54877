//! A generation, from a complete request to the last byte of its response.
//!
//! Reading order: [`cached`] (a response that is there already), [`reading`] (a long body at a
//! worker), [`submit`] (a request becomes a job), [`reservation`] (the tokens that it may cost),
//! [`recording`] (its record), [`running`] (the job's events become a response), [`failure`] (or an
//! error), [`stream`] (a response in pieces), [`writing`] (a long response at a worker).
//!
//! Must never know which API a request came by: that is its dialect's and its narrator's business.

pub mod cached;
pub mod failure;
pub mod reading;
pub mod recording;
pub mod reservation;
pub mod running;
pub mod stream;
pub mod submit;
pub mod writing;
