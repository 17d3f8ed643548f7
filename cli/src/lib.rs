//! What the `podvisor` command does, as a library that tests and benchmarks share.

mod manifest;
mod translate;
