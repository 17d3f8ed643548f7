//! Label and metadata area of a physical volume (lib/format_text/layout.h of LVM2).

use std::io;

use super::PhysicalVolume;

/// Longest metadata that is read. LVM's default area holds 1 MiB.
pub const MAX_METADATA_LEN: usize = 4 << 20;
/// Length of a sector, in which labels and offsets are given.
const SECTOR: usize = 512;
/// Sectors in which a label may lie.
const LABEL_SECTORS: usize = 4;
/// Areas of either kind that are looked at.
const MAX_AREAS: usize = 16;
/// Length of a metadata area's header, after which its text begins.
const HEADER_LEN: u64 = 512;
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// Why a physical volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The device.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// A header makes no sense.
    #[error("has a corrupt LVM label")]
    Corrupt,
    /// A volume whose group's metadata lies on others.
    #[error("has no LVM metadata of its own")]
    NoMetadata,
}

/// Reads a physical volume's label and its group's metadata; `read` reads up to a number of bytes
/// at an offset of the device.
///
/// # Errors
///
/// [`LabelError`].
pub fn physical_volume(
    read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
) -> Result<PhysicalVolume, LabelError> {
    let head = read(0, LABEL_SECTORS * SECTOR)?;
    let label = head
        .chunks(SECTOR)
        .find(|sector| sector.starts_with(b"LABELONE"))
        .ok_or(LabelError::Corrupt)?;
    let header_at = usize::try_from(u32_at(label, 20)?).map_err(|_| LabelError::Corrupt)?;
    let header = label.get(header_at..).ok_or(LabelError::Corrupt)?;
    let id = header.get(..32).ok_or(LabelError::Corrupt)?;
    let id = String::from_utf8_lossy(id).into_owned();
    // After the identifier and the device's size: data areas, then metadata areas, each list
    // ended by zeros.
    let areas = header.get(40..).ok_or(LabelError::Corrupt)?;
    let data_areas = list_len(areas)?;
    let areas = areas
        .get((data_areas + 1) * 16..)
        .ok_or(LabelError::Corrupt)?;
    for index in 0..list_len(areas)? {
        let area = u64_at(areas, index * 16)?;
        if let Some(metadata) = metadata_of(read, area)? {
            return Ok(PhysicalVolume { id, metadata });
        }
    }
    Err(LabelError::NoMetadata)
}

/// Entries of a list of areas before the zeros that end it.
fn list_len(areas: &[u8]) -> Result<usize, LabelError> {
    for index in 0..MAX_AREAS {
        if u64_at(areas, index * 16)? == 0 {
            return Ok(index);
        }
    }
    Err(LabelError::Corrupt)
}

/// The text of the area at `area`; `None` when it holds none.
fn metadata_of(
    read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
    area: u64,
) -> Result<Option<String>, LabelError> {
    let header = read(area, SECTOR)?;
    if header.get(4..20) != Some(AREA_MAGIC) {
        return Err(LabelError::Corrupt);
    }
    let area_len = u64_at(&header, 32)?;
    let (offset, len) = (u64_at(&header, 40)?, u64_at(&header, 48)?);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let total = usize::try_from(len).map_err(|_| LabelError::Corrupt)?;
    if total > MAX_METADATA_LEN || offset >= area_len || len > area_len {
        return Err(LabelError::Corrupt);
    }
    // The area is a ring: text that reaches its end goes on after the header.
    let first = usize::try_from(len.min(area_len - offset)).map_err(|_| LabelError::Corrupt)?;
    let at = |offset: u64| area.checked_add(offset).ok_or(LabelError::Corrupt);
    let mut text = read(at(offset)?, first)?;
    if total > first {
        text.extend(read(at(HEADER_LEN)?, total - first)?);
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, LabelError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes
        .map(|bytes| u32::from_le_bytes(*bytes))
        .ok_or(LabelError::Corrupt)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, LabelError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes
        .map(|bytes| u64::from_le_bytes(*bytes))
        .ok_or(LabelError::Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AREA: usize = 4096;
    const AREA_LEN: usize = 2048;

    /// A device whose metadata text begins at `offset` of its area.
    fn device(offset: usize, text: &str) -> Vec<u8> {
        let mut device = vec![0; 8192];
        device[512..520].copy_from_slice(b"LABELONE");
        device[532] = 32;
        device[536..544].copy_from_slice(b"LVM2 001");
        let header = 512 + 32;
        device[header..header + 32].copy_from_slice(&[b'i'; 32]);
        // One data area, its end, one metadata area.
        device[header + 40 + 2] = 1;
        device[header + 72..header + 80].copy_from_slice(&(AREA as u64).to_le_bytes());
        device[AREA + 4..AREA + 20].copy_from_slice(AREA_MAGIC);
        for (at, value) in [(32, AREA_LEN), (40, offset), (48, text.len())] {
            device[AREA + at..AREA + at + 8].copy_from_slice(&(value as u64).to_le_bytes());
        }
        for (index, byte) in text.bytes().enumerate() {
            let at = offset + index;
            let at = if at < AREA_LEN {
                at
            } else {
                at - AREA_LEN + 512
            };
            device[AREA + at] = byte;
        }
        device
    }

    fn open(device: &[u8]) -> Result<PhysicalVolume, LabelError> {
        physical_volume(&|offset, len| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let rest = device.get(start..).unwrap_or_default();
            Ok(rest.get(..len).unwrap_or(rest).to_vec())
        })
    }

    #[test]
    fn metadata_is_found_also_where_it_wraps() {
        for offset in [512, AREA_LEN - 5] {
            let volume = open(&device(offset, "vg { id = 1 }")).unwrap();
            assert_eq!(volume.metadata, "vg { id = 1 }");
            assert_eq!(volume.id, "i".repeat(32));
        }
    }

    #[test]
    fn a_volume_without_metadata_says_so() {
        assert!(matches!(
            open(&device(512, "")),
            Err(LabelError::NoMetadata)
        ));
        assert!(matches!(open(&[0; 4096]), Err(LabelError::Corrupt)));
    }

    proptest! {
        #[test]
        fn no_damage_does_harm(at in 500..5000_usize, bytes: [u8; 8]) {
            let mut device = device(512, "vg { id = 1 }");
            device[at..at + 8].copy_from_slice(&bytes);
            let _ = open(&device);
        }
    }
}
