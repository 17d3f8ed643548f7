//! A machine's processors: one thread each, and the switch that starts, parks and ends them.

mod cell;
mod control;
mod pinning;
mod stats;
mod thread;

pub(crate) use cell::VcpuCell;
pub(crate) use control::{Control, Policies};
pub use pinning::PinError;
pub use stats::{ExitCounts, StatsError};
pub(crate) use thread::{VcpuContext, VcpuThreads, prepare_signal};
