//! What the host's ends and the queues' handler share.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::ConsoleConfig;
use super::control::{FromDriver, ToDriver};
use super::port::{Port, SavedPort};
use crate::console::{ConsoleDevice, Terminal};
use crate::virtio::device::VirtioInterrupt;

/// Messages that wait for a driver's buffers; with more, none of its own are taken. A driver that
/// comes up is told at most four of each port.
const MAX_MESSAGES: usize = 8 * (super::MAX_PORTS + 1);
/// The console's number; named ports follow.
const CONSOLE: u32 = 0;

/// A window's size in characters; zero is "not known".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WindowSize {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

#[derive(Default)]
struct State {
    window: WindowSize,
    /// For the driver, the oldest first.
    messages: VecDeque<ToDriver>,
    /// The driver has the console's port and can be told of its size.
    console_ready: bool,
    /// Bytes of the first output of each port that were taken already; the console's first.
    taken: Vec<usize>,
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
}

/// See the module.
pub(super) struct Shared {
    terminal: Option<Terminal>,
    ports: Vec<Arc<Port>>,
    state: Mutex<State>,
    /// Wakes the handler.
    pub(super) kick: EventFd,
}

/// What a saved machine keeps of its console device.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ConsoleState {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<SavedPort>,
    /// Whether the driver has the console's port.
    #[prost(bool, tag = "2")]
    console_ready: bool,
    /// Bytes of the first output of each port that were taken already.
    #[prost(uint64, repeated, tag = "3")]
    taken: Vec<u64>,
}

impl Shared {
    pub(super) fn new(config: ConsoleConfig) -> io::Result<Self> {
        let ports = config.ports.into_iter();
        Ok(Self {
            terminal: config.terminal,
            ports: ports.map(|name| Arc::new(Port::new(name))).collect(),
            state: Mutex::default(),
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    pub(super) fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    /// Wakes the handler, if there is one; otherwise it looks when it begins.
    pub(super) fn wake_handler(&self) {
        // Full only after 2^64 - 1 kicks that nobody took.
        let _ = self.kick.write(1);
    }

    pub(super) fn set_interrupt(&self, interrupt: Option<Arc<dyn VirtioInterrupt>>) {
        self.lock().interrupt = interrupt;
    }

    pub(super) fn window(&self) -> WindowSize {
        self.lock().window
    }

    /// Drivers without control messages look at the configuration.
    pub(super) fn resize(&self, window: WindowSize) {
        let mut state = self.lock();
        if state.window == window {
            return;
        }
        state.window = window;
        if state.console_ready {
            // An older size is of no use any more.
            state
                .messages
                .retain(|message| !matches!(message, ToDriver::Resize(..)));
            state.messages.push_back(ToDriver::Resize(CONSOLE, window));
        }
        let interrupt = state.interrupt.clone();
        drop(state);
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
        self.wake_handler();
    }

    /// Whether a message of the driver can be answered.
    pub(super) fn takes_messages(&self) -> bool {
        self.lock().messages.len() < MAX_MESSAGES / 2
    }

    /// Answers a message of the driver.
    pub(super) fn handle(&self, message: FromDriver) {
        match message {
            FromDriver::DeviceReady => {
                let console = self.terminal.as_ref().map(|_| CONSOLE);
                let ports = (CONSOLE + 1..).zip(&self.ports).map(|(id, _)| id);
                let all = console.into_iter().chain(ports).map(ToDriver::Add);
                self.lock().messages.extend(all);
            }
            FromDriver::PortReady(CONSOLE) if self.terminal.is_some() => {
                let mut state = self.lock();
                state.console_ready = true;
                let resize = ToDriver::Resize(CONSOLE, state.window);
                let messages = [
                    ToDriver::IsConsole(CONSOLE),
                    ToDriver::Open(CONSOLE),
                    resize,
                ];
                state.messages.extend(messages);
            }
            FromDriver::PortReady(id) => {
                if let Some(port) = self.port(id) {
                    let name = ToDriver::Name(id, port.name.clone());
                    self.lock().messages.extend([name, ToDriver::Open(id)]);
                }
            }
            FromDriver::PortOpen(id, open) => {
                if let Some(port) = self.port(id) {
                    port.set_open(open);
                }
            }
        }
    }

    /// The next message for the driver.
    pub(super) fn next_message(&self) -> Option<ToDriver> {
        self.lock().messages.pop_front()
    }

    fn port(&self, id: u32) -> Option<&Arc<Port>> {
        let index = usize::try_from(id.checked_sub(CONSOLE + 1)?).ok()?;
        self.ports.get(index)
    }

    /// Bytes of the first output of port `index` (0 is the console) that were taken already.
    pub(super) fn taken(&self, index: usize) -> usize {
        self.lock().taken.get(index).copied().unwrap_or(0)
    }

    /// Sets [`Self::taken`].
    pub(super) fn set_taken(&self, index: usize, count: usize) {
        let mut state = self.lock();
        if state.taken.len() <= index {
            state.taken.resize(self.ports.len() + 1, 0);
        }
        if let Some(taken) = state.taken.get_mut(index) {
            *taken = count;
        }
    }

    /// The driver is gone, and what it had.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.messages.clear();
        state.console_ready = false;
        state.taken.clear();
        drop(state);
        for port in &self.ports {
            port.set_open(false);
        }
    }

    /// The device is gone.
    pub(super) fn shut(&self) {
        self.ports.iter().for_each(|port| port.shut());
    }

    /// Messages of a driver that has not taken them are not kept: it is a matter of milliseconds.
    pub(super) fn save(&self) -> ConsoleState {
        let state = self.lock();
        ConsoleState {
            ports: self.ports.iter().map(|port| port.save()).collect(),
            console_ready: state.console_ready,
            taken: state.taken.iter().map(|&count| count as u64).collect(),
        }
    }

    pub(super) fn restore(&self, saved: ConsoleState) {
        let mut state = self.lock();
        state.console_ready = saved.console_ready;
        let taken = saved.taken.into_iter().take(self.ports.len() + 1);
        state.taken = taken
            .map(|count| usize::try_from(count).unwrap_or(0))
            .collect();
        drop(state);
        for (port, saved) in self.ports.iter().zip(saved.ports) {
            port.restore(saved);
        }
    }
}

impl ConsoleDevice for Shared {
    fn output_room(&self) {
        self.wake_handler();
    }

    fn input_ready(&self) {
        self.wake_handler();
    }
}
