//! Processors that come and go, as ACPI describes them: a device for each that there can be, over
//! a register that says whether it is there (`devices::legacy::cpu_slots`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Arg, BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, If, Method, MethodCall, Name, NotEqual, Notify, OpRegion,
    OpRegionSpace, Path, Return, Store, ZERO,
};
use acpi_tables::madt::{EnabledStatus, ProcessorLocalApic};
use podvisor_devices::legacy::cpu_slots;

use super::AcpiProcessors;
use super::raw::Raw;
use crate::arch::layout;

const SCAN: &str = "\\_SB_.CPUS.SCAN";

/// Objects of a device that there is, and that works (ACPI 6.5, 6.3.7).
const STATUS_PRESENT: u8 = 0xf;
/// Notifications (ACPI 6.5, table 5.165).
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
/// `_OST` codes of an ejection (ACPI 6.5, 6.3.5.2).
const OST_SUCCESS: u8 = 0;
const OST_EJECTION_IN_PROGRESS: u8 = 0x84;

/// The processors of a machine in which some can come.
pub(super) fn append(processors: AcpiProcessors, aml: &mut Vec<u8>) {
    let numbers = || 0..processors.topology.possible().get();
    let register = OpRegion::new(
        Path::new("CREG"),
        OpRegionSpace::SystemIO,
        &layout::PORT_CPUS_BASE,
        &layout::PORT_CPUS_LEN,
    );
    let bytes = numbers().map(|number| FieldEntry::Named(name(b'S', number), 8));
    let slots = Field::new(
        Path::new("CREG"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        bytes.collect(),
    );
    let devices: Vec<_> = numbers().map(|number| device(number, processors)).collect();
    let scan = scan(numbers());
    let hid = EISAName::new("PNP0A05");
    let (own_id, compatible_id) = (
        Name::new(Path::new("_HID"), &"ACPI0010"),
        Name::new(Path::new("_CID"), &hid),
    );
    let mut children: Vec<&dyn Aml> = vec![&own_id, &compatible_id, &register, &slots];
    children.extend(devices.iter().map(|device| device as &dyn Aml));
    children.push(&scan);
    Device::new(Path::new("_SB_.CPUS"), children).to_aml_bytes(aml);
}

/// A name of four characters with the processor's number in it.
fn name(first: u8, number: u8) -> [u8; 4] {
    let digit = |value: u8| match value {
        0..10 => b'0' + value,
        _ => b'A' + (value - 10),
    };
    [first, b'0', digit(number >> 4), digit(number & 0xf)]
}

fn path(first: u8, number: u8) -> Path {
    let name = name(first, number);
    Path::new(&String::from_utf8_lossy(&name))
}

fn device(number: u8, processors: AcpiProcessors) -> Raw {
    let slot = path(b'S', number);
    let apic_id = processors.topology.apic_id(number);
    let entry = ProcessorLocalApic::new(number, apic_id, EnabledStatus::Enabled);
    let entry = BufferData::new(Raw::of(&entry).0);
    let (id, unique_id, local_apic) = (
        Name::new(Path::new("_HID"), &"ACPI0007"),
        Name::new(Path::new("_UID"), &number),
        Name::new(Path::new("_MAT"), &entry),
    );
    let status = status(&slot);
    let (eject, outcome) = (eject(&slot), outcome(&slot));
    let mut children: Vec<&dyn Aml> = vec![&id, &unique_id, &status, &local_apic];
    // The processor that the guest began on stays.
    if number > 0 {
        children.extend([&eject as &dyn Aml, &outcome]);
    }
    Raw::of(&Device::new(path(b'C', number), children))
}

/// Whether the processor is there.
fn status(slot: &Path) -> Raw {
    let present = And::new(&ZERO, slot, &cpu_slots::PRESENT);
    let (there, missing) = (Return::new(&STATUS_PRESENT), Return::new(&ZERO));
    let answer = If::new(&present, vec![&there]);
    let steps: Vec<&dyn Aml> = vec![&answer, &missing];
    Raw::of(&Method::new(Path::new("_STA"), 0, false, steps))
}

/// The guest lets go of it.
fn eject(slot: &Path) -> Raw {
    let leave = Store::new(slot, &cpu_slots::EJECT);
    Raw::of(&Method::new(Path::new("_EJ0"), 1, false, vec![&leave]))
}

/// The guest tells what became of a notification. Only that it keeps the processor matters:
/// what it lets go of it ejects.
fn outcome(slot: &Path) -> Raw {
    let refuse = Store::new(slot, &cpu_slots::REFUSE);
    let failed = NotEqual::new(&Arg(1), &OST_SUCCESS);
    let for_good = NotEqual::new(&Arg(1), &OST_EJECTION_IN_PROGRESS);
    let about_ejection = Equal::new(&Arg(0), &NOTIFY_EJECT_REQUEST);
    let answer = If::new(&for_good, vec![&refuse]);
    let answer = If::new(&failed, vec![&answer]);
    let answer = If::new(&about_ejection, vec![&answer]);
    Raw::of(&Method::new(Path::new("_OST"), 3, false, vec![&answer]))
}

/// Looks at each slot: what is to be told is told once.
fn scan(numbers: std::ops::Range<u8>) -> Raw {
    let steps: Vec<_> = numbers.skip(1).map(scan_step).collect();
    let steps = steps.iter().map(|step| step as &dyn Aml).collect();
    Raw::of(&Method::new(Path::new("SCAN"), 0, true, steps))
}

fn scan_step(number: u8) -> Raw {
    let (slot, device) = (path(b'S', number), path(b'C', number));
    let mut step = Raw(Vec::new());
    for (event, notification) in [
        (cpu_slots::INSERTED, NOTIFY_DEVICE_CHECK),
        (cpu_slots::EJECT_ASKED, NOTIFY_EJECT_REQUEST),
    ] {
        If::new(
            &And::new(&ZERO, &slot, &event),
            vec![
                &Store::new(&slot, &event),
                &Notify::new(&device, &notification),
            ],
        )
        .to_aml_bytes(&mut step.0);
    }
    step
}

/// What the event device's method does: tells the guest of every processor that comes or shall go.
pub(super) fn call_scan() -> Raw {
    Raw::of(&MethodCall::new(Path::new(SCAN), Vec::new()))
}
