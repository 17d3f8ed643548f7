//! The generic event device (ACPI 6.5, section 5.6.9), and the devices whose events it reports.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Interrupt, Local, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Store, ZERO,
};
use podvisor_devices::legacy::GedEvent;

use super::AcpiConfig;
use super::processors;
use super::raw::Raw;
use crate::arch::layout;

const BUTTON: &str = "\\_SB_.PWRB";
const GENERATION: &str = "\\_SB_.VGEN";
/// "Status changed" of a button device (ACPI 6.5, table 5.170), and what a generation ID device
/// sends as well.
const NOTIFY_CHANGED: u8 = 0x80;

/// What the guest's code does at an event.
struct Reaction {
    event: GedEvent,
    action: Raw,
}

impl Reaction {
    fn notify(event: GedEvent, device: &str) -> Self {
        let action = Raw::of(&Notify::new(&Path::new(device), &NOTIFY_CHANGED));
        Self { event, action }
    }
}

/// The devices that `config` has, and the one that reports for them, if there are any.
pub(super) fn append(config: &AcpiConfig, aml: &mut Vec<u8>) {
    let mut reactions = Vec::new();
    if config.has_button {
        button(aml);
        reactions.push(Reaction::notify(GedEvent::PowerButton, BUTTON));
    }
    if config.has_generation {
        generation(aml);
        reactions.push(Reaction::notify(GedEvent::Generation, GENERATION));
    }
    if config.processors.can_change() {
        processors::append(config.processors, aml);
        reactions.push(Reaction {
            event: GedEvent::Processors,
            action: processors::call_scan(),
        });
    }
    if !reactions.is_empty() {
        event_device(&reactions, aml);
    }
}

fn button(aml: &mut Vec<u8>) {
    Device::new(
        Path::new(BUTTON),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")),
            &Name::new(Path::new("_UID"), &ZERO),
        ],
    )
    .to_aml_bytes(aml);
}

/// Says where the generation ID lies ("Virtual Machine Generation ID", Microsoft, 2012).
fn generation(aml: &mut Vec<u8>) {
    let compatible = &"VM_Gen_Counter";
    let place = Package::new(vec![&layout::GENERATION_ID_ADDRESS, &ZERO]);
    Device::new(
        Path::new(GENERATION),
        vec![
            &Name::new(Path::new("_HID"), &"PODV0001"),
            &Name::new(Path::new("_CID"), compatible),
            &Name::new(Path::new("_DDN"), compatible),
            &Name::new(Path::new("ADDR"), &place),
        ],
    )
    .to_aml_bytes(aml);
}

/// Its method reads what happened, which clears it, and does what that asks for.
fn event_device(reactions: &[Reaction], aml: &mut Vec<u8>) {
    let line = Interrupt::new(true, true, false, false, layout::GSI_EVENTS);
    let resources = ResourceTemplate::new(vec![&line]);
    let mut steps = Raw::of(&Store::new(&Local(0), &Path::new("EVNT")));
    for Reaction { event, action } in reactions {
        And::new(&Local(1), &Local(0), &(*event as u32)).to_aml_bytes(&mut steps.0);
        If::new(&Local(1), vec![action]).to_aml_bytes(&mut steps.0);
    }
    Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
            &OpRegion::new(
                Path::new("EREG"),
                OpRegionSpace::SystemIO,
                &layout::PORT_EVENTS_BASE,
                &layout::PORT_EVENTS_LEN,
            ),
            &Field::new(
                Path::new("EREG"),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVNT", 32)],
            ),
            &Method::new(Path::new("_EVT"), 1, true, vec![&steps]),
        ],
    )
    .to_aml_bytes(aml);
}
