//! What the benchmarks share: medians with their confidence, how figures are printed, transfers.

mod figure;
mod median;
mod stream;

pub use figure::print_figure;
pub use median::Median;
pub use stream::{receive, send};
