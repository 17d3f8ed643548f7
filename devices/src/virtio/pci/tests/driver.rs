//! What a driver sees that follows the steps of the specification, or does not.

use super::*;

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
