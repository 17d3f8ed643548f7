//! Control messages (virtio 1.2, 5.3.6.2).

use super::PortName;
use super::shared::WindowSize;

/// Length of `struct virtio_console_control`.
pub(super) const LEN: usize = 8;

/// Events of the specification's table.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// What a driver tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FromDriver {
    /// It has come up.
    DeviceReady,
    /// It has a port.
    PortReady(u32),
    /// A program has opened a port, or closed it.
    PortOpen(u32, bool),
}

impl FromDriver {
    /// `None` for what needs no answer: a driver's failure, and what is not known.
    pub(super) fn parse(bytes: [u8; LEN]) -> Option<Self> {
        let [a, b, c, d, event_low, event_high, low, high] = bytes;
        let id = u32::from_le_bytes([a, b, c, d]);
        let event = u16::from_le_bytes([event_low, event_high]);
        let value = u16::from_le_bytes([low, high]);
        match (event, value) {
            (event::DEVICE_READY, 1) => Some(Self::DeviceReady),
            (event::PORT_READY, 1) => Some(Self::PortReady(id)),
            (event::PORT_OPEN, value) => Some(Self::PortOpen(id, value == 1)),
            _ => None,
        }
    }
}

/// What a driver is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToDriver {
    /// There is a port.
    Add(u32),
    /// A port is a console.
    IsConsole(u32),
    /// A port has a name.
    Name(u32, PortName),
    /// The host has opened a port.
    Open(u32),
    /// A console's window has this size.
    Resize(u32, WindowSize),
}

impl ToDriver {
    /// The message as it goes to the driver.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (id, event, value) = match self {
            Self::Add(id) => (id, event::DEVICE_ADD, 1_u16),
            Self::IsConsole(id) => (id, event::CONSOLE_PORT, 1),
            Self::Name(id, _) => (id, event::PORT_NAME, 1),
            Self::Open(id) => (id, event::PORT_OPEN, 1),
            Self::Resize(id, _) => (id, event::RESIZE, 0),
        };
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend(id.to_le_bytes());
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        match self {
            Self::Name(_, name) => bytes.extend(name.as_str().bytes()),
            // The order of the specification, which Linux follows since 6.12.30 and 6.15.
            Self::Resize(_, size) => {
                bytes.extend(size.columns.to_le_bytes());
                bytes.extend(size.rows.to_le_bytes());
            }
            Self::Add(_) | Self::IsConsole(_) | Self::Open(_) => {}
        }
        bytes
    }
}
