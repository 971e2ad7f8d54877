//! Tests the scheduler over a toy model.

mod any_schedule;
mod archived;
mod batching;
mod ending;
mod fairness;
mod pausing;
mod policies;
mod prefixes;
mod toy;
