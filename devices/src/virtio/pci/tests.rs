//! The transport as a driver sees it, in front of a device that only records.

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::QueueT as _;

use super::*;
use crate::pci::msix::tests::RecordedMessages;
use crate::virtio::device::{ActivateError, Activation, DeviceType, QueueHandle};
use crate::virtio::testing::{DriverQueue, guest_memory};

const BAR: u64 = 0x40_0000_0000;
const DEVICE_FEATURE: u64 = 1 << 5;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const NEEDS_RESET: u8 = 0x40;

#[derive(Default)]
struct Record {
    active: Option<Activation>,
    activations: usize,
    refuse: bool,
    config: Vec<u8>,
    restored: Vec<u8>,
}

/// Keeps what it is activated with; queue 0 is mandatory.
struct Probe(Arc<Mutex<Record>>);

impl VirtioDevice for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn device_features(&self) -> u64 {
        DEVICE_FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let record = self.0.lock().unwrap();
        let from = record.config.iter().skip(usize::try_from(offset).unwrap());
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, _offset: u64, data: &[u8]) {
        self.0.lock().unwrap().config = data.to_vec();
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut record = self.0.lock().unwrap();
        if record.refuse
            || activation
                .queues
                .first()
                .is_none_or(|queue| queue.index != 0)
        {
            return Err(ActivateError::QueueMissing(0));
        }
        record.activations += 1;
        record.active = Some(activation);
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let active = self.0.lock().unwrap().active.take();
        active.expect("only an active device is deactivated").queues
    }
    fn save(&self) -> Vec<u8> {
        b"probe".to_vec()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        self.0.lock().unwrap().restored = state.to_vec();
        Ok(())
    }
}

/// A driver that uses the transport's registers.
struct Fixture {
    device: Arc<VirtioPciDevice>,
    record: Arc<Mutex<Record>>,
    messages: Arc<RecordedMessages>,
    memory: GuestMemory,
}

impl Fixture {
    fn new() -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let messages = Arc::new(RecordedMessages::default());
        let memory = guest_memory(0x10000);
        let probe = Box::new(Probe(Arc::clone(&record)));
        let device = VirtioPciDevice::new(probe, Arc::clone(&memory), messages.clone(), BAR);
        Self {
            device: device.unwrap(),
            record,
            messages,
            memory,
        }
    }

    /// Memory space and bus mastering on, MSI-X on, vector `n` sends `0x40 + n`.
    fn enabled() -> Self {
        let fixture = Self::new();
        fixture.command(0b110);
        fixture
            .device
            .write_config(fixture.capability(0x11, 0) + 2, &[0, 0x80]);
        for vector in 0..3_u8 {
            let entry = 0x4000 + 16 * u64::from(vector);
            let message = [
                0,
                0,
                0xe0,
                0xfe,
                0,
                0,
                0,
                0,
                0x40 + vector,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            for (word, bytes) in (0..).zip(message.chunks(4)) {
                fixture.device.write(entry + 4 * word, bytes);
            }
        }
        fixture
    }

    fn command(&self, command: u8) {
        self.device.write_config(4, &[command, 0]);
    }

    /// The offset of the capability `id`; for virtio's, the one of type `cfg_type`.
    fn capability(&self, id: u8, cfg_type: u8) -> u16 {
        let byte = |offset| {
            let mut data = [0];
            self.device.read_config(offset, &mut data);
            data[0]
        };
        let mut offset = byte(0x34);
        while offset != 0 {
            let at = u16::from(offset);
            if byte(at) == id && (id != 9 || byte(at + 3) == cfg_type) {
                return at;
            }
            offset = byte(at + 1);
        }
        panic!("no capability {id:#x}/{cfg_type}");
    }

    fn config_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.device.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read(offset, &mut data);
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(STATUS)[0]
    }

    fn set_features(&self, features: u64) {
        for half in 0..2_u8 {
            self.device.write(0x08, &[half, 0, 0, 0]);
            let word = u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap();
            self.device.write(0x0c, &word.to_le_bytes());
        }
    }

    fn negotiate(&self, features: u64) {
        self.device.write(STATUS, &[1]);
        self.device.write(STATUS, &[3]);
        self.set_features(features);
        self.device.write(STATUS, &[0xb]);
    }

    fn set_up_queue(&self, index: u8, addresses: [u64; 3]) {
        self.device.write(QUEUE_SELECT, &[index, 0]);
        self.device.write(0x18, &[8, 0]);
        self.device.write(0x1a, &[index + 1, 0]);
        for (field, address) in [0x20, 0x28, 0x30].into_iter().zip(addresses) {
            let bytes = address.to_le_bytes();
            self.device.write(field, &bytes[..4]);
            self.device.write(field + 4, &bytes[4..]);
        }
        self.device.write(0x1c, &[1, 0]);
    }

    fn queue(&self, base: u64) -> DriverQueue {
        DriverQueue::new(Arc::clone(&self.memory), base, 8)
    }

    fn start(&self) {
        self.negotiate(VERSION_1 | EVENT_IDX | DEVICE_FEATURE);
        self.device.write(0x10, &[0, 0]);
        self.set_up_queue(0, self.queue(0x1000).addresses());
        self.set_up_queue(1, self.queue(0x2000).addresses());
        self.device.write(STATUS, &[0xf]);
    }

    fn is_active(&self) -> bool {
        self.record.lock().unwrap().active.is_some()
    }

    fn interrupt_queue(&self, index: u16) {
        let record = self.record.lock().unwrap();
        record.active.as_ref().unwrap().interrupt.queue(index);
    }
}

#[test]
fn capabilities_lead_to_every_structure_of_the_bar() {
    let fixture = Fixture::new();
    assert_eq!(fixture.config_u32(0), 0x1044_1af4);
    for (cfg_type, offset) in [(1, 0), (3, 0x1000), (4, 0x2000), (2, 0x3000)] {
        let at = fixture.capability(9, cfg_type);
        assert_eq!(fixture.config_u32(at + 8), offset);
    }
    assert_eq!(
        fixture.config_u32(fixture.capability(9, 2) + 16),
        4,
        "notify multiplier"
    );
    let msix = fixture.capability(0x11, 0);
    assert_eq!(fixture.config_u32(msix) >> 16, 2, "three vectors");
    assert_eq!(fixture.config_u32(msix + 4), 0x4000);
    assert_eq!(fixture.config_u32(msix + 8), 0x5000);
}

#[test]
fn a_driver_that_follows_the_steps_starts_the_device_with_its_queues() {
    let fixture = Fixture::enabled();
    assert_eq!(fixture.read(0x12), [2, 0], "number of queues");
    fixture.start();
    assert_eq!(fixture.status(), 0xf);
    let record = fixture.record.lock().unwrap();
    let active = record.active.as_ref().unwrap();
    assert_eq!(
        active.driver_features,
        VERSION_1 | EVENT_IDX | DEVICE_FEATURE
    );
    let [first, second] = active.queues.as_slice() else {
        panic!("two queues")
    };
    assert_eq!((first.index, second.index), (0, 1));
    assert_eq!((first.queue.size(), first.queue.desc_table()), (8, 0x1000));
    assert!(second.queue.event_idx_enabled());
}

#[test]
fn features_are_offered_in_halves_and_checked_when_accepted() {
    let fixture = Fixture::enabled();
    let mut offered = 0;
    for half in 0..2_u8 {
        fixture.device.write(0, &[half, 0, 0, 0]);
        offered |= u64::from(u32::from_le_bytes(fixture.read(4))) << (32 * half);
    }
    assert_eq!(offered, DEVICE_FEATURE | VERSION_1 | EVENT_IDX | 1 << 28);
    for wrong in [DEVICE_FEATURE, VERSION_1 | 1 << 6] {
        fixture.negotiate(wrong);
        assert_eq!(
            fixture.status(),
            0x3,
            "FEATURES_OK must not stick for {wrong:#x}"
        );
        fixture.device.write(STATUS, &[0xf]);
        assert_eq!(fixture.status(), 0x3, "nor DRIVER_OK after it");
        fixture.device.write(STATUS, &[0]);
    }
    fixture.negotiate(VERSION_1);
    fixture.set_features(offered);
    assert_eq!(
        fixture.read(0x0c),
        1_u32.to_le_bytes(),
        "final after FEATURES_OK"
    );
}

#[test]
fn a_reset_stops_the_device_and_clears_all_registers() {
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.device.write(STATUS, &[0]);
    assert!(!fixture.is_active());
    assert_eq!(fixture.status(), 0);
    assert_eq!(fixture.read(0x10), [0xff, 0xff]);
    fixture.device.write(QUEUE_SELECT, &[1, 0]);
    assert_eq!(fixture.read(0x18), [8, 0]);
    assert_eq!(fixture.read(0x1a), [0xff, 0xff]);
    assert_eq!(fixture.read(0x1c), [0, 0]);
    assert_eq!(fixture.read(0x20), [0; 8]);
    fixture.start();
    assert!(fixture.is_active());
}

#[test]
fn rings_outside_of_memory_need_a_reset_and_a_reset_heals() {
    let fixture = Fixture::enabled();
    fixture.negotiate(VERSION_1);
    fixture.device.write(0x10, &[0, 0]);
    fixture.set_up_queue(0, [0x1000, 0xffff_ffff_0000, 0x3000]);
    fixture.device.write(STATUS, &[0xf]);
    assert_eq!(fixture.status(), 0xf | NEEDS_RESET);
    assert_eq!(fixture.messages.take(), [0x40], "a configuration interrupt");
    fixture.device.write(STATUS, &[0]);
    fixture.start();
    assert_eq!(fixture.status(), 0xf);
}

#[test]
fn a_device_that_refuses_needs_a_reset_and_the_first_time_is_told() {
    let fixture = Fixture::enabled();
    let causes = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&causes);
    let tell = move |cause: &str| told.lock().unwrap().push(cause.to_owned());
    fixture.device.on_failure(Box::new(tell));
    fixture.record.lock().unwrap().refuse = true;
    fixture.start();
    assert_eq!(fixture.status(), 0xf | NEEDS_RESET);
    fixture.device.pause();
    fixture.device.resume();
    assert!(!fixture.is_active());
    fixture.device.write(STATUS, &[0]);
    fixture.start();
    assert_eq!(fixture.status(), 0xf | NEEDS_RESET);
    assert_eq!(*causes.lock().unwrap(), ["queue 0 is not enabled"]);
}

#[test]
fn registers_of_a_started_queue_and_of_no_queue_do_not_change() {
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.device.write(QUEUE_SELECT, &[0, 0]);
    fixture.device.write(0x20, &[0; 8]);
    fixture.device.write(0x18, &[2, 0]);
    assert_eq!(fixture.read(0x20), 0x1000_u64.to_le_bytes());
    assert_eq!(fixture.read(0x18), [8, 0]);
    fixture.device.write(QUEUE_SELECT, &[2, 0]);
    fixture.device.write(0x1c, &[1, 0]);
    assert_eq!(
        fixture.read(0x18),
        [0, 0],
        "size 0 means that there is no such queue"
    );
    assert_eq!(fixture.read(0x1c), [0, 0]);
}

#[test]
fn queue_and_configuration_interrupts_use_the_chosen_vectors() {
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.interrupt_queue(1);
    assert_eq!(fixture.messages.take(), [0x42]);
    assert_eq!(fixture.read(0x1000), [1], "the interrupt status");
    assert_eq!(fixture.read(0x1000), [0], "reading clears it");
    let generation = fixture.read::<1>(0x15);
    let record = fixture.record.lock().unwrap();
    record.active.as_ref().unwrap().interrupt.config();
    assert_eq!(fixture.messages.take(), [0x40]);
    assert_ne!(fixture.read::<1>(0x15), generation);
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let fixture = Fixture::enabled();
    fixture.device.write(0x10, &[3, 0]);
    assert_eq!(fixture.read(0x10), [0xff, 0xff]);
    fixture.device.write(0x1a, &[2, 0]);
    assert_eq!(fixture.read(0x1a), [2, 0]);
}

#[test]
fn without_bus_mastering_the_device_stands_still_and_then_catches_up() {
    let fixture = Fixture::enabled();
    fixture.start();
    let notify = Arc::clone(
        &fixture
            .record
            .lock()
            .unwrap()
            .active
            .as_ref()
            .unwrap()
            .queues[0]
            .notify,
    );
    fixture.command(0b010);
    assert!(!fixture.is_active());
    assert_eq!(fixture.status(), 0xf);
    assert!(notify.read().is_err());
    fixture.command(0b110);
    assert!(fixture.is_active());
    assert_eq!(notify.read().unwrap(), 1, "the device looks at its rings");
    assert_eq!(
        fixture.messages.take(),
        [0x41, 0x42],
        "and so does the driver"
    );
}

#[test]
fn a_start_without_bus_mastering_waits_for_it() {
    let fixture = Fixture::enabled();
    fixture.command(0b010);
    fixture.start();
    assert!(!fixture.is_active());
    fixture.command(0b110);
    assert!(fixture.is_active());
    assert!(fixture.messages.take().is_empty());
}

#[test]
fn without_memory_space_the_bar_reads_all_ones_and_ignores_writes() {
    let fixture = Fixture::enabled();
    fixture.command(0b100);
    assert_eq!(fixture.read(0), [0xff; 4]);
    fixture.device.write(STATUS, &[1]);
    fixture.command(0b110);
    assert_eq!(fixture.status(), 0);
}

#[test]
fn the_bar_is_reachable_through_configuration_space() {
    let fixture = Fixture::new();
    let at = fixture.capability(9, 5);
    let access = |offset: u32, len: u8| {
        fixture.device.write_config(at + 8, &offset.to_le_bytes());
        fixture.device.write_config(at + 12, &[len, 0, 0, 0]);
    };
    access(0x12, 2);
    assert_eq!(fixture.config_u32(at + 16) & 0xffff, 2, "number of queues");
    access(0x14, 1);
    fixture.device.write_config(at + 16, &[1]);
    assert_eq!(fixture.config_u32(at + 16) & 0xff, 1, "status ACKNOWLEDGE");
    access(0x2000, 4);
    fixture.device.write_config(at + 16, b"conf");
    assert_eq!(fixture.config_u32(at + 16).to_le_bytes(), *b"conf");
    access(0x12, 3);
    assert_eq!(
        fixture.config_u32(at + 16),
        0,
        "an impossible length does nothing"
    );
}

#[test]
fn a_write_to_a_notification_address_signals_that_queue() {
    let fixture = Fixture::enabled();
    let notifiers = fixture.device.notifiers();
    let addresses: Vec<u64> = notifiers.iter().map(|notifier| notifier.address).collect();
    assert_eq!(addresses, [BAR + 0x3000, BAR + 0x3004]);
    fixture.device.write(0x3004, &[1, 0]);
    fixture.device.write(0x3008, &[2, 0]);
    assert!(notifiers[0].event.read().is_err());
    assert_eq!(notifiers[1].event.read().unwrap(), 1);
}

#[test]
fn a_paused_device_goes_on_in_another_one_where_it_stood() {
    let fixture = Fixture::enabled();
    fixture.start();
    assert!(matches!(fixture.device.save(), Err(StateError::Running)));
    {
        let mut record = fixture.record.lock().unwrap();
        let queue = &mut record.active.as_mut().unwrap().queues[1].queue;
        queue.set_next_avail(5);
        queue.set_next_used(4);
    }
    fixture.device.pause();
    assert!(!fixture.is_active());
    let state = fixture.device.save().unwrap();

    let other = Fixture::new();
    other.device.restore(&state).unwrap();
    assert!(!other.is_active());
    assert_eq!(other.device.save().unwrap(), state);
    other.device.resume();
    let record = other.record.lock().unwrap();
    let active = record.active.as_ref().unwrap();
    assert_eq!(
        active.driver_features,
        VERSION_1 | EVENT_IDX | DEVICE_FEATURE
    );
    let queue = &active.queues[1].queue;
    assert_eq!(
        (queue.next_avail(), queue.next_used(), queue.size()),
        (5, 4, 8)
    );
    assert_eq!(record.restored, b"probe");
    assert_eq!(other.messages.take(), [0x41, 0x42]);
}

#[test]
fn interrupts_of_a_paused_device_stay_pending_in_its_state() {
    let fixture = Fixture::enabled();
    fixture.start();
    let interrupt = {
        let record = fixture.record.lock().unwrap();
        Arc::clone(&record.active.as_ref().unwrap().interrupt)
    };
    fixture.device.pause();
    interrupt.config();
    assert!(fixture.messages.take().is_empty());
    let other = Fixture::new();
    other
        .device
        .restore(&fixture.device.save().unwrap())
        .unwrap();
    other.device.resume();
    assert_eq!(other.messages.take(), [0x40, 0x41, 0x42]);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    use prost::Message as _;
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.device.pause();
    let state = super::state::VirtioPciState::parse(&fixture.device.save().unwrap()).unwrap();
    let wrong = |change: &dyn Fn(&mut super::state::VirtioPciState)| {
        let mut state = state.clone();
        change(&mut state);
        Fixture::new().device.restore(&state.encode_to_vec())
    };
    assert!(matches!(
        wrong(&|state| state.version = 2),
        Err(StateError::Version(2))
    ));
    assert!(wrong(&|state| state.device_type = 1).is_err());
    assert!(wrong(&|state| state.driver_features = 1).is_err());
    assert!(wrong(&|state| state.queues.truncate(1)).is_err());
    assert!(wrong(&|state| state.queues[0].size = 7).is_err());
    assert!(wrong(&|state| state.queues[0].next_used = 1 << 16).is_err());
    assert!(wrong(&|state| state.queues[0].used = u64::MAX - 3).is_err());
    assert!(wrong(&|state| state.msix = None).is_err());
    assert!(wrong(&|_| {}).is_ok());
    assert!(matches!(
        Fixture::new().device.restore(b"\xff"),
        Err(StateError::Decode(_))
    ));
}

#[test]
fn dropping_the_transport_stops_the_device() {
    let fixture = Fixture::enabled();
    fixture.start();
    let record = Arc::clone(&fixture.record);
    drop(fixture);
    assert!(record.lock().unwrap().active.is_none());
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_skips_a_step(
        accesses in prop::collection::vec(
            (0_u8..4, prop_oneof![0_u64..0x40, 0_u64..0x8010], prop::collection::vec(any::<u8>(), 0..9)),
            0..64,
        ),
    ) {
        let fixture = Fixture::enabled();
        for (kind, offset, mut data) in accesses {
            let register = u16::try_from(offset & 0xfff).unwrap();
            match kind {
                0 => fixture.device.read(offset, &mut data),
                1 => fixture.device.write(offset, &data),
                2 => fixture.device.read_config(register, &mut data),
                _ => fixture.device.write_config(register, &data),
            }
            fixture.command(0b110);
            let status = fixture.status();
            prop_assert!(status & 4 == 0 || status & 8 != 0, "DRIVER_OK needs FEATURES_OK");
            prop_assert!(!fixture.is_active() || status & 4 != 0);
        }
    }
}
