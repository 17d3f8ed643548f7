//! What the benchmarks share: medians with their confidence, and how figures are printed.

mod figure;
mod median;

pub use figure::print_figure;
pub use median::Median;
