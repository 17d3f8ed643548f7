//! Who sits where on the bus.

use super::PciError;
use crate::arch::layout;
use crate::config::PciSlot;

/// The device numbers of a bus, the lowest first.
pub(super) fn numbers() -> impl Iterator<Item = u8> {
    1..=u8::try_from(layout::PCI_MAX_DEVICES).unwrap_or(u8::MAX)
}

/// Gives each device the number it wants, and those that do not care the lowest ones left, in
/// order: a machine of the same devices has them in the same places.
pub(super) fn assign(wanted: &[(&str, Option<PciSlot>)]) -> Result<Vec<u8>, PciError> {
    if wanted.len() > layout::PCI_MAX_DEVICES {
        return Err(PciError::TooMany(wanted.len()));
    }
    for (index, (name, slot)) in wanted.iter().enumerate() {
        let mut before = wanted.iter().take(index);
        let same = before.find(|(_, other)| slot.is_some() && other == slot);
        if let (Some(slot), Some((first, _))) = (slot, same) {
            return Err(PciError::Collision {
                slot: *slot,
                first: (*first).to_owned(),
                second: (*name).to_owned(),
            });
        }
    }
    let is_free = |number: &u8| {
        let mut slots = wanted.iter().filter_map(|(_, slot)| *slot);
        slots.all(|slot| slot.get() != *number)
    };
    let mut free = numbers().filter(is_free);
    let number = |slot: Option<PciSlot>| slot.map(PciSlot::get).or_else(|| free.next());
    let assigned = wanted.iter().map(|(_, slot)| *slot).map(number);
    assigned.collect::<Option<_>>().ok_or(PciError::Full)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(number: u8) -> Option<PciSlot> {
        Some(PciSlot::try_from(u32::from(number)).unwrap())
    }

    #[test]
    fn devices_without_wishes_sit_in_order_around_those_with() {
        let wanted = [
            ("a", None),
            ("b", slot(2)),
            ("c", None),
            ("d", slot(1)),
            ("e", None),
        ];
        assert_eq!(assign(&wanted).unwrap(), [3, 2, 4, 1, 5]);
    }

    #[test]
    fn two_devices_in_one_slot_are_named() {
        let wanted = [("net0", slot(7)), ("x", None), ("disk0", slot(7))];
        let error = assign(&wanted).unwrap_err();
        assert_eq!(
            error.to_string(),
            "devices net0 and disk0 both want PCI slot 7"
        );
    }

    proptest! {
        #[test]
        fn every_device_has_a_place_of_its_own(wishes in prop::collection::vec(prop::option::of(1_u8..=31), 0..36)) {
            let wanted: Vec<_> = wishes.iter().map(|wish| ("x", wish.and_then(slot))).collect();
            match assign(&wanted) {
                Ok(numbers) => {
                    let mut sorted = numbers.clone();
                    sorted.sort_unstable();
                    sorted.dedup();
                    prop_assert_eq!(sorted.len(), wishes.len());
                    for (number, wish) in numbers.iter().zip(&wishes) {
                        prop_assert!((1..=31).contains(number));
                        prop_assert!(wish.is_none_or(|wish| wish == *number));
                    }
                }
                Err(PciError::TooMany(count)) => prop_assert!(count > 31),
                Err(error) => prop_assert!(matches!(error, PciError::Collision { .. }), "{error}"),
            }
        }
    }
}
