//! TEMPORARY until devices::legacy exists.
use std::sync::{Arc, Mutex};

use podvisor_devices::bus::{Bus, BusDevice};

use crate::arch::layout;
use crate::config::ConsoleOutput;
use crate::event::EndReason;

pub(crate) struct Platform {
    tail: Arc<Mutex<Vec<u8>>>,
}

struct Port {
    tail: Arc<Mutex<Vec<u8>>>,
    output: Option<ConsoleOutput>,
}
impl BusDevice for Port {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 5 { 0x60 } else { 0 });
    }
    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.tail.lock().unwrap().extend_from_slice(data);
            if let Some(output) = &self.output {
                output(data);
            }
        }
    }
}
struct Acpi(Box<dyn Fn(EndReason) + Send + Sync>);
impl BusDevice for Acpi {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, offset: u64, _: &[u8]) {
        match offset {
            0 => (self.0)(EndReason::Shutdown),
            2 => (self.0)(EndReason::Reset),
            _ => {}
        }
    }
}

impl Platform {
    pub(crate) fn place(ports: &Bus, output: Option<ConsoleOutput>, end: Box<dyn Fn(EndReason) + Send + Sync>) -> Self {
        let tail = Arc::new(Mutex::new(Vec::new()));
        ports.insert(layout::PORT_SERIAL.base, layout::PORT_SERIAL.len, Arc::new(Port { tail: tail.clone(), output })).unwrap();
        ports.insert(layout::PORT_ACPI.base, layout::PORT_ACPI.len, Arc::new(Acpi(end))).unwrap();
        Self { tail }
    }
    pub(crate) fn console_tail(&self) -> Arc<dyn Fn() -> Vec<u8> + Send + Sync> {
        let tail = self.tail.clone();
        Arc::new(move || tail.lock().unwrap().clone())
    }
}
