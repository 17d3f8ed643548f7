//! What the transport does under its lock: register accesses, and starting and stopping the
//! device.

use std::io;
use std::sync::Arc;

use prost::Message as _;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT as _;
use vmm_sys_util::eventfd::EventFd;

use super::common::{CommonConfig, DRIVER_OK, Request};
use super::interrupt::PciInterrupt;
use super::layout::{self, Access, BAR_LEN, Part};
use super::queue::{Position, QueueConfig, QueueError};
use super::state::{QueueState, StateError, VERSION, VirtioPciState, narrow};
use crate::GuestMemory;
use crate::pci::config::{Class, ConfigSpace, Identity};
use crate::pci::msix;
use crate::virtio::device::{
    Activation, DeviceType, QueueHandle, Reset, VirtioDevice, VirtioInterrupt,
};

const VENDOR: u16 = 0x1af4;
/// Device numbers of modern devices begin here (virtio 1.2, 4.1.2).
const FIRST_DEVICE: u16 = 0x1040;

/// Who has the queues.
enum Queues {
    /// Nobody: there is no driver, or the device failed.
    None,
    /// The transport, before the device serves them for the first time.
    Fresh(Vec<QueueHandle>),
    /// The transport, after the device was stopped.
    Stopped(Vec<QueueHandle>),
    /// The device.
    Running,
}

/// One device's registers and the device behind them.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    config: ConfigSpace,
    msix_capability: u8,
    access_capability: u8,
    common: CommonConfig,
    interrupt: Arc<PciInterrupt>,
    notify: Vec<Arc<EventFd>>,
    queues: Queues,
    paused: bool,
}

impl Transport {
    /// The transport of `device` as it comes up.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        bar_address: u64,
        interrupt: Arc<PciInterrupt>,
        notify: Vec<Arc<EventFd>>,
    ) -> io::Result<Self> {
        let common = CommonConfig::new(device.device_features(), device.queue_max_sizes());
        let mut config = ConfigSpace::new(identity(device.device_type()));
        config.set_bar(bar_address, BAR_LEN);
        let (body, writable) = interrupt
            .msix()
            .capability(layout::MSIX_TABLE, layout::MSIX_PENDING);
        let count = u16::try_from(notify.len()).map_err(io::Error::other)?;
        let no_room = || io::Error::other("no room for the capabilities");
        let msix_capability = config.add_capability(msix::CAPABILITY_ID, &body, &writable);
        let access_capability = layout::add_capabilities(&mut config, count);
        Ok(Self {
            device,
            memory,
            config,
            msix_capability: msix_capability.ok_or_else(no_room)?,
            access_capability: access_capability.ok_or_else(no_room)?,
            common,
            interrupt,
            notify,
            queues: Queues::None,
            paused: false,
        })
    }

    /// Whether the BAR answers at its address.
    pub fn decodes_bar(&self) -> bool {
        self.config.decodes_bar()
    }

    /// Reads from the BAR.
    pub fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((part, offset)) = layout::find(offset, data.len()) else {
            return;
        };
        match part {
            Part::Common => self.common.read(offset, data, &self.interrupt),
            Part::Isr => {
                if let (0, Some(first)) = (offset, data.first_mut()) {
                    *first = self.interrupt.take_isr();
                }
            }
            Part::Device => self.device.read_config(offset, data),
            Part::Notify => {}
            Part::MsixTable => self.interrupt.msix().read_table(offset, data),
            Part::MsixPending => self.interrupt.msix().read_pending(offset, data),
        }
    }

    /// Writes to the BAR.
    pub fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let Some((part, offset)) = layout::find(offset, data.len()) else {
            return;
        };
        match part {
            Part::Common => match self.common.write(offset, data, &self.interrupt) {
                Some(Request::Reset) => self.reset(Reset::Driver),
                Some(Request::Start) => self.start(),
                None => {}
            },
            Part::Device => self.device.write_config(offset, data),
            Part::Notify => self.notify(offset / u64::from(layout::NOTIFY_STRIDE)),
            Part::MsixTable => self.interrupt.write_table(offset, data),
            Part::Isr | Part::MsixPending => {}
        }
    }

    /// Reads the function's configuration space.
    pub fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        let Some((skip, access)) = self.access_at(offset) else {
            return;
        };
        let mut word = [0; 4];
        if let Some(bytes) = word.get_mut(..access.len) {
            self.read_bar(access.offset, bytes);
        }
        for (to, from) in data.iter_mut().zip(word.iter().skip(skip)) {
            *to = *from;
        }
    }

    /// Writes the function's configuration space.
    pub fn write_config(&mut self, offset: u16, data: &[u8]) {
        if let Some((skip, access)) = self.access_at(offset) {
            if let (0, Some(bytes)) = (skip, data.get(..access.len)) {
                self.write_bar(access.offset, bytes);
            }
            return;
        }
        self.config.write(offset, data);
        self.conditions_changed();
    }

    /// Back to how everything came up.
    pub fn power_on(&mut self) {
        self.reset(Reset::Machine);
        self.config.reset();
        self.interrupt.power_on();
        self.conditions_changed();
    }

    /// Holds the device, or lets it go on.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.conditions_changed();
    }

    /// The whole state as a message.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        let handles: &[QueueHandle] = match &self.queues {
            Queues::None => &[],
            Queues::Fresh(handles) | Queues::Stopped(handles) => handles,
            Queues::Running => return Err(StateError::Running),
        };
        let queues = self.common.queues.iter().zip(0..).map(|(config, index)| {
            let handle = handles.iter().find(|handle| handle.index == index);
            save_queue(config, self.interrupt.queue_vector(index), handle)
        });
        let state = VirtioPciState {
            version: VERSION,
            device_type: u32::from(self.device.device_type() as u16),
            config: self.config.registers().to_vec(),
            status: self.common.status.into(),
            needs_reset: self.interrupt.is_broken(),
            driver_features: self.common.driver_features,
            device_feature_select: self.common.device_feature_select,
            driver_feature_select: self.common.driver_feature_select,
            queue_select: self.common.queue_select.into(),
            isr: self.interrupt.isr().into(),
            generation: self.interrupt.generation().into(),
            config_vector: self.interrupt.config_vector().into(),
            queues: queues.collect(),
            msix: Some(self.interrupt.msix().save()),
            device: self.device.save(),
        };
        Ok(state.encode_to_vec())
    }

    /// Takes a saved state and stays paused.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        if matches!(self.queues, Queues::Running) {
            return Err(StateError::Running);
        }
        let state = VirtioPciState::parse(bytes)?;
        self.check(&state)?;
        self.paused = true;
        self.device.restore(&state.device)?;
        let msix = state.msix.unwrap_or_default();
        if !self.interrupt.msix().restore(&msix) {
            return Err(StateError::Mismatch("interrupt vectors"));
        }
        let common = &mut self.common;
        common.status = narrow(state.status, "status")?;
        common.driver_features = state.driver_features;
        common.device_feature_select = state.device_feature_select;
        common.driver_feature_select = state.driver_feature_select;
        common.queue_select = narrow(state.queue_select, "selected queue")?;
        let generation = narrow(state.generation, "generation")?;
        self.interrupt.restore(
            narrow(state.isr, "interrupt status")?,
            generation,
            state.needs_reset,
        );
        self.interrupt
            .set_config_vector(narrow(state.config_vector, "vector")?);
        let mut positions = Vec::with_capacity(state.queues.len());
        for ((config, saved), index) in common.queues.iter_mut().zip(&state.queues).zip(0..) {
            self.interrupt
                .set_queue_vector(index, narrow(saved.vector, "vector")?);
            positions.push(restore_queue(config, saved)?);
        }
        self.config.write(0, &state.config);
        if self.common.status & DRIVER_OK != 0 && !state.needs_reset {
            let handles = self.handles(&positions);
            let handles = handles.map_err(|(index, source)| StateError::Queue { index, source })?;
            self.queues = if self.config.is_bus_master() {
                Queues::Stopped(handles)
            } else {
                Queues::Fresh(handles)
            };
        }
        self.conditions_changed();
        Ok(())
    }

    fn check(&self, state: &VirtioPciState) -> Result<(), StateError> {
        let fits = [
            (
                state.device_type == u32::from(self.device.device_type() as u16),
                "device type",
            ),
            (
                state.driver_features & !self.common.device_features == 0,
                "features",
            ),
            (
                state.queues.len() == self.common.queues.len(),
                "number of queues",
            ),
            (
                state.config.len() == self.config.registers().len(),
                "configuration space",
            ),
        ];
        match fits.iter().find(|(fits, _)| !fits) {
            Some((_, what)) => Err(StateError::Mismatch(what)),
            None => Ok(()),
        }
    }

    /// Whether a configuration access at `offset` is one to the BAR: how many bytes of the
    /// data word it skips, and where it goes.
    fn access_at(&self, offset: u16) -> Option<(usize, Access)> {
        let data = u16::from(self.access_capability) + Access::DATA;
        let skip = offset.checked_sub(data).filter(|skip| *skip < 4)?;
        Some((
            usize::from(skip),
            Access::of(&self.config, self.access_capability)?,
        ))
    }

    /// Applies what the configuration space and the pause allow. Interrupts of a paused
    /// device stay pending, so that none gets lost around a saved state.
    fn conditions_changed(&mut self) {
        let control = self.config.read_u16(self.msix_capability + 2);
        let may_send = self.config.is_bus_master() && !self.paused;
        if !self.config.is_bus_master() && self.has_served() {
            self.take_queues();
            self.common.stop();
            self.interrupt.msix().clear_pending();
        }
        self.interrupt.set_control(control, may_send);
        self.follow();
    }

    fn notify(&self, queue: u64) {
        let event = usize::try_from(queue)
            .ok()
            .and_then(|queue| self.notify.get(queue));
        if let Some(event) = event {
            // Fails only when the counter is full, and then the device is notified already.
            let _ = event.write(1);
        }
    }

    fn reset(&mut self, reset: Reset) {
        self.take_queues();
        self.device.reset(reset);
        self.common.reset();
        self.interrupt.reset();
    }

    /// Stops the device and forgets its queues.
    fn take_queues(&mut self) {
        if matches!(self.queues, Queues::Running) {
            self.device.deactivate();
        }
        self.queues = Queues::None;
        for event in &self.notify {
            // Clears what nobody has read; an error means that there was nothing.
            let _ = event.read();
        }
    }

    fn start(&mut self) {
        let positions = vec![Position::default(); self.common.queues.len()];
        match self.handles(&positions) {
            Ok(handles) => {
                self.queues = Queues::Fresh(handles);
                self.follow();
            }
            Err((index, error)) => {
                self.interrupt
                    .needs_reset(&format!("queue {index}: {error}"));
            }
        }
    }

    /// Whether the device serves its queues, or would but for a pause.
    fn has_served(&self) -> bool {
        matches!(self.queues, Queues::Running | Queues::Stopped(_))
    }

    /// The enabled queues as the device takes them.
    fn handles(&self, positions: &[Position]) -> Result<Vec<QueueHandle>, (usize, QueueError)> {
        let event_idx = self.common.has_feature(VIRTIO_RING_F_EVENT_IDX);
        let mut handles = Vec::new();
        let queues = self
            .common
            .queues
            .iter()
            .zip(&self.notify)
            .zip(positions)
            .zip(0..);
        for (((config, notify), position), index) in queues {
            if config.enabled {
                let queue = config.activate(&self.memory, event_idx, *position);
                let queue = queue.map_err(|error| (usize::from(index), error))?;
                handles.push(QueueHandle {
                    index,
                    queue,
                    notify: Arc::clone(notify),
                });
            }
        }
        Ok(handles)
    }

    /// Starts or stops the device as the present conditions want it.
    fn follow(&mut self) {
        let may_run = !self.paused && self.config.is_bus_master() && !self.interrupt.is_broken();
        self.queues = match std::mem::replace(&mut self.queues, Queues::None) {
            Queues::Fresh(handles) if may_run => self.activate(handles),
            Queues::Stopped(handles) if may_run => {
                let indices: Vec<u16> = handles.iter().map(|handle| handle.index).collect();
                let queues = self.activate(handles);
                self.catch_up(&indices);
                queues
            }
            Queues::Running if !may_run => Queues::Stopped(self.device.deactivate()),
            queues => queues,
        };
    }

    fn activate(&mut self, queues: Vec<QueueHandle>) -> Queues {
        let interrupt = Arc::clone(&self.interrupt) as Arc<dyn VirtioInterrupt>;
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            driver_features: self.common.driver_features,
            queues,
            interrupt,
        };
        match self.device.activate(activation) {
            Ok(()) => Queues::Running,
            Err(error) => {
                self.interrupt.needs_reset(&error.to_string());
                Queues::None
            }
        }
    }

    /// A notification or an interrupt may have been lost while the device stood still: both
    /// sides look at their rings once more.
    fn catch_up(&self, indices: &[u16]) {
        for &index in indices {
            self.notify(index.into());
            self.interrupt.queue(index);
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if matches!(self.queues, Queues::Running) {
            self.device.deactivate();
        }
    }
}

fn identity(device_type: DeviceType) -> Identity {
    let (base, sub) = match device_type {
        DeviceType::Net => (0x02, 0x00),
        DeviceType::Block => (0x01, 0x80),
        DeviceType::Console => (0x07, 0x80),
        DeviceType::Rng
        | DeviceType::Balloon
        | DeviceType::Vsock
        | DeviceType::Mem
        | DeviceType::Fs => (0xff, 0x00),
    };
    let device = FIRST_DEVICE + device_type as u16;
    Identity {
        vendor: VENDOR,
        device,
        // 1 or higher says that the device is not a transitional one.
        revision: 1,
        class: Class {
            base,
            sub,
            interface: 0,
        },
        subsystem_vendor: VENDOR,
        subsystem: device,
    }
}

fn save_queue(config: &QueueConfig, vector: u16, handle: Option<&QueueHandle>) -> QueueState {
    QueueState {
        size: config.size.into(),
        enabled: config.enabled,
        vector: vector.into(),
        descriptors: config.descriptors,
        available: config.available,
        used: config.used,
        next_avail: handle.map_or(0, |handle| handle.queue.next_avail().into()),
        next_used: handle.map_or(0, |handle| handle.queue.next_used().into()),
    }
}

fn restore_queue(config: &mut QueueConfig, saved: &QueueState) -> Result<Position, StateError> {
    config.choose_size(narrow(saved.size, "queue size")?);
    if u32::from(config.size) != saved.size {
        return Err(StateError::Mismatch("queue size"));
    }
    config.enabled = saved.enabled;
    config.descriptors = saved.descriptors;
    config.available = saved.available;
    config.used = saved.used;
    Ok(Position {
        next_avail: narrow(saved.next_avail, "queue position")?,
        next_used: narrow(saved.next_used, "queue position")?,
    })
}
