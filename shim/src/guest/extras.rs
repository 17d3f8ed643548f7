//! What a guest has for entropy, for memory that it does not need, and as its console.

use std::num::NonZeroU32;

use podvisor_annotations::value::guest::ConsoleKind;
use podvisor_annotations::value::memory::Balloon as BalloonMode;
use podvisor_devices::console::Terminal;
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonControl};
use podvisor_devices::virtio::rng::{Rng, RngConfig};
use podvisor_devices::virtio::{ConsoleConfig, ConsolePort, PortName, VirtioConsole};
use podvisor_vmm::DeviceSlot;

use super::launch::device;
use super::{LaunchError, qga};

/// The choices there are; by default those for guests that run containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extras {
    /// Most random bytes a second, `None` for any number.
    pub rng: Option<NonZeroU32>,
    /// How memory goes back to the host.
    pub balloon: BalloonMode,
    /// What the console is.
    pub console: ConsoleKind,
}

impl Default for Extras {
    fn default() -> Self {
        Self {
            rng: None,
            balloon: BalloonMode::Reporting,
            console: ConsoleKind::Serial,
        }
    }
}

/// The devices of some [`Extras`].
pub(super) struct ExtraDevices {
    pub(super) slots: Vec<DeviceSlot>,
    /// Moves the balloon, where somebody is to.
    pub(super) balloon: Option<BalloonControl>,
    /// The port for a guest agent of the machine's own, where there is to be one.
    pub(super) qga: Option<ConsolePort>,
}

impl Extras {
    /// The devices, served by `io`; a virtio console shows `terminal`. With `has_qga` there is a port
    /// for a guest agent: the same device has both.
    pub(super) fn devices(
        self,
        io: &EventLoop,
        terminal: &Terminal,
        has_qga: bool,
    ) -> Result<ExtraDevices, LaunchError> {
        let bytes_per_second = self.rng;
        let rng = Rng::new(RngConfig { bytes_per_second }, io.clone()).map_err(device("rng"))?;
        let mut slots = vec![DeviceSlot::new("rng", rng)];
        let mut control = None;
        if self.balloon != BalloonMode::Off {
            let (balloon, handle) = Balloon::new(BalloonConfig { reporting: true }, io.clone());
            slots.push(DeviceSlot::new("balloon", balloon));
            control = (self.balloon == BalloonMode::Auto).then_some(handle);
        }
        let is_console = self.console == ConsoleKind::Virtio;
        let mut qga = None;
        if is_console || has_qga {
            let names = [qga::PORT].into_iter().filter(|_| has_qga);
            let names = names.map(PortName::try_from).collect::<Result<_, _>>();
            let config = ConsoleConfig {
                terminal: is_console.then(|| terminal.clone()),
                ports: names.map_err(device("console"))?,
            };
            let made = VirtioConsole::new(config, io.clone());
            let (console, _, mut ports) = made.map_err(device("console"))?;
            slots.push(DeviceSlot::new("console", console));
            qga = ports.pop();
        }
        Ok(ExtraDevices {
            slots,
            balloon: control,
            qga,
        })
    }
}
