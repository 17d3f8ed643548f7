//! The console device (virtio 1.2, 5.3): a console that follows its window's size, and named ports
//! that programs of host and guest talk over.
//!
//! ```text
//! guest driver ── queues ── handler ── Shared ─┬─ Terminal (port 0, /dev/hvc0)
//!                          (io thread) (lock)  └─ ConsolePort (/dev/virtio-ports/NAME)
//! ```

mod control;
mod handler;
mod port;
mod shared;

use std::io;
use std::sync::{Arc, Weak};

use prost::Message as _;
use thiserror::Error;

use self::handler::ConsoleHandler;
use self::shared::{Shared, WindowSize};
use super::device::{ActivateError, Activation, DeviceType, QueueHandle, Reset, VirtioDevice};
use crate::console::{ConsoleDevice, Terminal};
use crate::event_loop::{EventLoop, HandlerId};

pub use self::port::{ConsolePort, PORT_BUFFER_LEN};

/// The configuration has the window's size (virtio 1.2, 5.3.3).
const F_SIZE: u32 = 0;
/// There are ports beside the console, and messages about them.
const F_MULTIPORT: u32 = 1;

/// Named ports of one device at most: each has two queues, which cost its guest memory.
pub const MAX_PORTS: usize = 8;
/// Bytes of a port's name at most; the driver makes a file name of it.
pub const MAX_NAME_LEN: usize = 64;
/// Entries of every queue. Linux fills all receive queues with pages.
const QUEUE_SIZE: u16 = 32;
/// Queues of the console and of control messages; each port behind has two more.
const FIXED_QUEUES: usize = 4;

/// A name that no port can have.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("port name {0:?}: 1 to {MAX_NAME_LEN} of A-Z a-z 0-9 . _ - make one")]
pub struct PortNameError(String);

/// The name of a port, by which programs in the guest find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName(String);

impl PortName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for PortName {
    type Error = PortNameError;

    fn try_from(name: &str) -> Result<Self, PortNameError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=MAX_NAME_LEN).contains(&name.len()) && name.bytes().all(is_plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(PortNameError(name.to_owned()))
        }
    }
}

/// Why a console device could not be made.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// More ports than a device has.
    #[error("{0} ports: a console device has at most {MAX_PORTS}")]
    TooMany(usize),
    /// Two ports have the same name.
    #[error("there are two ports {0:?}")]
    Twice(String),
    /// The host has no event file to give.
    #[error("cannot make an event file")]
    Event(#[source] io::Error),
}

/// What a console device is made of.
#[derive(Clone, Default)]
pub struct ConsoleConfig {
    /// What port 0 shows, if the guest is to have a console.
    pub terminal: Option<Terminal>,
    /// Ports by name.
    pub ports: Vec<PortName>,
}

/// Tells the guest of its window.
#[derive(Clone)]
pub struct ConsoleControl {
    shared: Arc<Shared>,
}

impl ConsoleControl {
    /// The console's window has this size from now on, in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.shared.resize(WindowSize { columns, rows });
    }
}

/// The device.
pub struct VirtioConsole {
    io: EventLoop,
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    active: Option<HandlerId>,
}

impl VirtioConsole {
    /// A device that is served by `io`, its control, and the host's ends of its ports in the
    /// order of `config`.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn new(
        config: ConsoleConfig,
        io: EventLoop,
    ) -> Result<(Self, ConsoleControl, Vec<ConsolePort>), ConsoleError> {
        let count = config.ports.len();
        if count > MAX_PORTS {
            return Err(ConsoleError::TooMany(count));
        }
        for (index, name) in config.ports.iter().enumerate() {
            if config
                .ports
                .iter()
                .skip(index + 1)
                .any(|other| other == name)
            {
                return Err(ConsoleError::Twice(name.0.clone()));
            }
        }
        let shared = Arc::new(Shared::new(config).map_err(ConsoleError::Event)?);
        if let Some(terminal) = shared.terminal() {
            let device: Weak<dyn ConsoleDevice> = Arc::<Shared>::downgrade(&shared);
            terminal.attach(device);
        }
        let control = ConsoleControl {
            shared: Arc::clone(&shared),
        };
        let port = |port| ConsolePort::new(Arc::clone(&shared), Arc::clone(port));
        let ports = shared.ports().iter().map(port).collect();
        let device = Self {
            io,
            shared,
            queue_sizes: vec![QUEUE_SIZE; FIXED_QUEUES + 2 * count],
            active: None,
        };
        Ok((device, control, ports))
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        1 << F_SIZE | 1 << F_MULTIPORT
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_console_config (5.3.4).
        let WindowSize { columns, rows } = self.shared.window();
        let ports = u32::try_from(self.queue_sizes.len() / 2 - 1).unwrap_or(1);
        let config = columns.to_le_bytes().into_iter().chain(rows.to_le_bytes());
        let config = config.chain(ports.to_le_bytes());
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        data.fill(0);
        for (to, from) in data.iter_mut().zip(config.skip(skipped)) {
            *to = from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let handler = ConsoleHandler::new(activation, Arc::clone(&self.shared))
            .map_err(ActivateError::QueueMissing)?;
        let attached = self.io.attach(Box::new(handler)).and_then(|id| {
            self.active = Some(id);
            // What came before the driver, or before a pause, is waiting.
            self.shared.kick.write(1)
        });
        attached.map_err(|source| ActivateError::Host {
            action: "serve the console's queues",
            source,
        })
    }

    fn deactivate(&mut self) -> Vec<QueueHandle> {
        self.shared.set_interrupt(None);
        let handler = self.active.take().and_then(|id| self.io.detach(id));
        handler
            .map(|handler| handler.into_queues())
            .unwrap_or_default()
    }

    fn reset(&mut self, _: Reset) {
        self.shared.reset();
    }

    fn save(&self) -> Vec<u8> {
        self.shared.save().encode_to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        self.shared.restore(shared::ConsoleState::decode(state)?);
        Ok(())
    }
}

impl Drop for VirtioConsole {
    fn drop(&mut self) {
        self.deactivate();
        self.shared.shut();
    }
}

#[cfg(test)]
mod tests;
