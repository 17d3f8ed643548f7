//! What the `podvisor` command does, as a library that tests and benchmarks share.

pub mod command;
pub mod leftovers;
pub mod streaming;

mod check;
mod console;
mod cri;
mod explain;
mod manifest;
mod pods;
mod run;
mod translate;
