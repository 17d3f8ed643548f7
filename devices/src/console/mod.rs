//! A guest's console between its device and whoever reads and types: one transcript, any number
//! of readers, one queue of input.
//!
//! ```text
//! guest driver ── serial port or virtio console ── Terminal ─┬─ ConsoleLog (the last 64 KiB)
//!                                                            ├─ ConsoleReader (logs)
//!                                                            └─ ConsoleReader (somebody attached)
//! ```
//!
//! Runtime-agnostic: everything waits with the wakers of [`std::task`]. No thread of the machine
//! ever waits: a device whose output is not taken tells its driver that it is busy, and goes on
//! when [`ConsoleDevice::output_room`] says so.

mod log;
mod reader;
mod terminal;

pub use log::{CAPACITY, ConsoleLog, OnLine};
pub use reader::{ConsoleReader, ReaderConfig, WhenFull};
pub use terminal::{ConsoleDevice, ConsoleTap, INPUT_CAPACITY, Terminal};

#[cfg(test)]
mod tests;
