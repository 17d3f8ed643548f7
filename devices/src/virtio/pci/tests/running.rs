//! A running device: bus mastering, notifications, pause, state, its end.

use super::*;

#[test]
fn a_device_that_lost_bus_mastering_touches_no_ring_until_its_drivers_reset() {
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.device.write(0x3000, &[0, 0]);
    fixture.command(0b010);
    assert!(!fixture.is_active());
    assert_eq!(fixture.status(), 0xb, "DRIVER_OK is gone");
    // Another kernel finds the device and has other things where the rings were.
    fixture.command(0b110);
    assert!(!fixture.is_active());
    assert!(fixture.messages.take().is_empty());
    let notifiers = fixture.device.notifiers();
    assert!(
        notifiers[0].event.read().is_err(),
        "nor an old notification"
    );
    fixture.device.write(STATUS, &[0]);
    fixture.start();
    assert!(fixture.is_active());
    assert_eq!(fixture.record.lock().unwrap().activations, 2);
}

#[test]
fn a_pause_keeps_the_queues() {
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.device.pause();
    assert!(!fixture.is_active());
    assert_eq!(fixture.status(), 0xf);
    fixture.device.resume();
    assert!(fixture.is_active());
    let notifiers = fixture.device.notifiers();
    assert_eq!(
        notifiers[0].event.read().unwrap(),
        1,
        "it looks at its rings"
    );
    assert_eq!(
        fixture.messages.take(),
        [0x41, 0x42],
        "and so does the driver"
    );
}

#[test]
fn a_machines_reset_makes_all_as_it_came_up() {
    let fresh = Fixture::new();
    fresh.device.pause();
    let fixture = Fixture::enabled();
    fixture.device.write(0x2000, b"config");
    let causes = Arc::new(Mutex::new(0));
    let told = Arc::clone(&causes);
    let tell = move |_: &str| *told.lock().unwrap() += 1;
    fixture.device.on_failure(Box::new(tell));
    for round in 1..=2 {
        fixture.start();
        let interrupt = {
            let record = fixture.record.lock().unwrap();
            Arc::clone(&record.active.as_ref().unwrap().interrupt)
        };
        interrupt.needs_reset("a test");
        assert_eq!(*causes.lock().unwrap(), round, "each boot's first is told");
        fixture.device.write_config(0x10, &[0xff; 4]);
        fixture.device.power_on();
        assert!(!fixture.is_active());
        assert_eq!(
            fixture.record.lock().unwrap().resets.pop(),
            Some(Reset::Machine)
        );
        fixture.device.pause();
        assert_eq!(fixture.device.save().unwrap(), fresh.device.save().unwrap());
        fixture.device.resume();
        fixture.messages.take();
        fixture.enable();
    }
}

#[test]
fn a_paused_device_stays_paused_over_a_machines_reset() {
    let fixture = Fixture::enabled();
    fixture.start();
    fixture.device.pause();
    fixture.device.power_on();
    fixture.enable();
    fixture.start();
    assert!(!fixture.is_active());
    fixture.device.resume();
    assert!(fixture.is_active());
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
