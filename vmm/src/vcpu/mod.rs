//! A machine's processors: one thread each, and the switch that starts, parks and ends them.

mod cell;
mod control;
mod maker;
mod pinning;
mod seats;
mod stats;
mod thread;

pub(crate) use cell::VcpuCell;
pub(crate) use control::{Control, Policies};
pub use maker::MakeError;
pub(crate) use maker::VcpuMaker;
pub use pinning::PinError;
pub(crate) use seats::VcpuThreads;
pub use stats::{ExitCounts, StatsError};
pub(crate) use thread::{VcpuContext, prepare_signal};
