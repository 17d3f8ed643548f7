//! What the `podvisor` command does, as a library that tests and benchmarks share.

pub mod leftovers;

mod manifest;
mod translate;
