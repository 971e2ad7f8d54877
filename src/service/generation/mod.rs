//! A generation, from a complete request to the last byte of its response.
//!
//! Reading order: [`submit`] (a request becomes a job), [`running`] (the job's events become a
//! response).

pub mod running;
pub mod submit;
