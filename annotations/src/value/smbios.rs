//! What the guest's firmware tables say of the machine.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::address::hex_byte;
use crate::{Field, Kind, ValueError};

text! {
    /// A string of an SMBIOS table.
    SmbiosString: "^[!-~]([ -~]{0,62}[!-~])?$", at most 64, is_smbios_string,
    "1 to 64 printable ASCII characters without a space at either end"
}

text! {
    /// A string of type 11: longer, as guests read whole credentials from it.
    OemString: "^[!-~]([ -~]{0,1022}[!-~])?$", at most 1024, is_smbios_string,
    "1 to 1024 printable ASCII characters without a space at either end"
}

fn is_smbios_string(text: &str) -> bool {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    !text.is_empty() && printable && !text.starts_with(' ') && !text.ends_with(' ')
}

/// A UUID, neither all zeros nor all ones, which SMBIOS takes as "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineUuid([u8; 16]);

impl MachineUuid {
    const WHAT: &'static str =
        "a UUID such as 6ba7b810-9dad-11d1-80b4-00c04fd430c8, not all zeros or ones";
    /// The form of it.
    pub const KIND: Kind = Kind::Text {
        pattern: "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        max_len: 36,
        what: Self::WHAT,
    };

    /// The bytes in the order in which they are written.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for MachineUuid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let groups = text.split('-').map(str::len);
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; 16];
        let mut rest = digits.as_str();
        let read = groups.eq([8, 4, 4, 4, 12])
            && bytes.iter_mut().all(|byte| {
                let Some((digits, after)) = rest.split_at_checked(2) else {
                    return false;
                };
                rest = after;
                hex_byte(digits).map(|value| *byte = value).is_some()
            });
        if read && bytes != [0; 16] && bytes != [0xff; 16] {
            Ok(Self(bytes))
        } else {
            Err(ValueError::new(text, Self::WHAT))
        }
    }
}

impl fmt::Display for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) {
                "-"
            } else {
                ""
            };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

deserialize_from_text!(MachineUuid);

/// SMBIOS type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmbiosSystem {
    /// Who made it.
    pub manufacturer: Option<SmbiosString>,
    /// What it is.
    pub product: Option<SmbiosString>,
    /// Which version of it.
    pub version: Option<SmbiosString>,
    /// Its serial number; made of the pod's identity without.
    pub serial: Option<SmbiosString>,
    /// Its UUID; made of the pod's identity without.
    pub uuid: Option<MachineUuid>,
    /// Its stock keeping unit.
    pub sku: Option<SmbiosString>,
    /// Its family.
    pub family: Option<SmbiosString>,
}

/// SMBIOS type 2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmbiosBoard {
    /// Who made it.
    pub manufacturer: Option<SmbiosString>,
    /// What it is.
    pub product: Option<SmbiosString>,
    /// Which version of it.
    pub version: Option<SmbiosString>,
    /// Its serial number.
    pub serial: Option<SmbiosString>,
    /// Its asset tag.
    pub asset: Option<SmbiosString>,
}

/// SMBIOS type 3.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmbiosChassis {
    /// Who made it.
    pub manufacturer: Option<SmbiosString>,
    /// Which version of it.
    pub version: Option<SmbiosString>,
    /// Its serial number.
    pub serial: Option<SmbiosString>,
    /// Its asset tag.
    pub asset: Option<SmbiosString>,
    /// Its stock keeping unit.
    pub sku: Option<SmbiosString>,
}

/// What the tables say beyond what they say of every pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Smbios {
    /// Type 1.
    pub system: SmbiosSystem,
    /// Type 2.
    pub board: SmbiosBoard,
    /// Type 3.
    pub chassis: SmbiosChassis,
    /// Type 11, which guests read credentials and settings from.
    pub oem_strings: Vec<OemString>,
}

impl Smbios {
    /// Most strings of type 11.
    pub const MAX_OEM_STRINGS: usize = 32;
    /// The form of it.
    pub const KIND: Kind = Kind::Map(&[
        Field::optional("system", Kind::Map(&SYSTEM), "type 1"),
        Field::optional("board", Kind::Map(&BOARD), "type 2"),
        Field::optional("chassis", Kind::Map(&CHASSIS), "type 3"),
        Field::optional(
            "oem-strings",
            Kind::List {
                of: &OemString::KIND,
                max: Self::MAX_OEM_STRINGS,
            },
            "type 11",
        ),
    ]);
}

const fn string(name: &'static str, meaning: &'static str) -> Field {
    Field::optional(name, SmbiosString::KIND, meaning)
}

const SYSTEM: [Field; 7] = [
    string("manufacturer", "who made it"),
    string("product", "what it is"),
    string("version", "which version of it"),
    string(
        "serial",
        "serial number; default: made of the pod's identity",
    ),
    Field::optional(
        "uuid",
        MachineUuid::KIND,
        "UUID; default: made of the pod's identity",
    ),
    string("sku", "stock keeping unit"),
    string("family", "family"),
];

const BOARD: [Field; 5] = [
    string("manufacturer", "who made it"),
    string("product", "what it is"),
    string("version", "which version of it"),
    string("serial", "serial number"),
    string("asset", "asset tag"),
];

const CHASSIS: [Field; 5] = [
    string("manufacturer", "who made it"),
    string("version", "which version of it"),
    string("serial", "serial number"),
    string("asset", "asset tag"),
    string("sku", "stock keeping unit"),
];
