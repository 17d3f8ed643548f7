//! A volume group and its volumes.

use super::text::{self, Section, Value};

/// Most volumes of a group that are looked at.
const MAX_VOLUMES: usize = 256;
/// Most segments of a volume, and stripes of a segment.
const MAX_SEGMENTS: usize = 4096;
const MAX_STRIPES: usize = 128;

/// Why metadata cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetadataError {
    /// It is not what LVM writes.
    #[error("the LVM metadata does not parse")]
    Syntax,
    /// A bound.
    #[error("the LVM metadata is too long")]
    TooLong,
    /// Something is missing.
    #[error("the LVM metadata has no {0}")]
    Missing(&'static str),
}

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub id: String,
    /// Changes with every change of the metadata.
    pub sequence: u64,
    /// Its volumes.
    pub volumes: Vec<LogicalVolume>,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub id: String,
    /// What it is made of, in order; `Err` names a type that is not read here.
    pub segments: Result<Vec<Segment>, String>,
}

/// A part of a logical volume. All numbers are sectors of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the volume.
    pub start: u64,
    /// How long it is.
    pub len: u64,
    /// Length of a stripe's piece; of no meaning for one stripe.
    pub chunk: u64,
    /// Where it lies: one stripe, or several that take turns.
    pub stripes: Vec<Stripe>,
}

/// Where a stripe lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripe {
    /// Identifier of the physical volume, without dashes.
    pub device: String,
    /// Where it begins there, in sectors.
    pub start: u64,
}

impl VolumeGroup {
    /// Parses a group's metadata.
    ///
    /// # Errors
    ///
    /// [`MetadataError`].
    pub fn parse(metadata: &str) -> Result<Self, MetadataError> {
        let file = text::parse(metadata)?;
        let (name, group) = file
            .sections
            .first()
            .ok_or(MetadataError::Missing("group"))?;
        let extent = number(group, "extent_size")?;
        let devices = group.section("physical_volumes");
        let devices = devices.ok_or(MetadataError::Missing("physical_volumes"))?;
        let volumes = group.section("logical_volumes");
        let volumes = volumes.map_or(&[][..], |section| &section.sections);
        let volumes = volumes.iter().filter(|(_, volume)| is_visible(volume));
        let volumes = volumes.take(MAX_VOLUMES).map(|(name, volume)| {
            Ok(LogicalVolume {
                name: name.clone(),
                id: plain_id(volume.text("id").unwrap_or_default()),
                segments: segments(volume, extent, devices)?,
            })
        });
        Ok(Self {
            name: name.clone(),
            id: plain_id(group.text("id").unwrap_or_default()),
            sequence: group.number("seqno").unwrap_or_default(),
            volumes: volumes.collect::<Result<_, _>>()?,
        })
    }
}

/// Identifiers are written with dashes, and stored without.
fn plain_id(id: &str) -> String {
    id.replace('-', "")
}

fn number(section: &Section, name: &'static str) -> Result<u64, MetadataError> {
    section.number(name).ok_or(MetadataError::Missing(name))
}

fn is_visible(volume: &Section) -> bool {
    let visible = Value::Text("VISIBLE".to_owned());
    volume.list("status").contains(&visible)
}

type Segments = Result<Vec<Segment>, String>;

fn segments(volume: &Section, extent: u64, devices: &Section) -> Result<Segments, MetadataError> {
    let mut segments = Vec::new();
    for (_, segment) in volume.sections.iter().take(MAX_SEGMENTS) {
        let kind = segment.text("type").ok_or(MetadataError::Missing("type"))?;
        if !matches!(kind, "striped" | "linear") {
            return Ok(Err(kind.to_owned()));
        }
        let pairs = segment.list("stripes").chunks_exact(2).take(MAX_STRIPES);
        let stripes = pairs.map(|pair| stripe(pair, extent, devices));
        let stripes = stripes.collect::<Result<Vec<_>, _>>()?;
        if stripes.is_empty() {
            return Err(MetadataError::Missing("stripes"));
        }
        segments.push(Segment {
            start: sectors(number(segment, "start_extent")?, extent)?,
            len: sectors(number(segment, "extent_count")?, extent)?,
            chunk: segment.number("stripe_size").unwrap_or_default(),
            stripes,
        });
    }
    segments.sort_by_key(|segment| segment.start);
    Ok(Ok(segments))
}

fn stripe(pair: &[Value], extent: u64, devices: &Section) -> Result<Stripe, MetadataError> {
    let [Value::Text(name), Value::Number(first)] = pair else {
        return Err(MetadataError::Missing("stripes"));
    };
    let device = devices.section(name);
    let device = device.ok_or(MetadataError::Missing("physical volume of a stripe"))?;
    let data = number(device, "pe_start")?;
    let start = sectors(*first, extent)?.checked_add(data);
    Ok(Stripe {
        device: plain_id(device.text("id").ok_or(MetadataError::Missing("id"))?),
        start: start.ok_or(MetadataError::TooLong)?,
    })
}

fn sectors(extents: u64, extent: u64) -> Result<u64, MetadataError> {
    extents.checked_mul(extent).ok_or(MetadataError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const METADATA: &str = r#"
debian-vg {
	id = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"
	seqno = 4
	format = "lvm2"			# informational
	status = ["RESIZEABLE", "READ", "WRITE"]
	flags = []
	extent_size = 8192		# 4 Megabytes
	physical_volumes {
		pv0 { id = "pv-zero" device = "/dev/vda2" pe_start = 2048 pe_count = 100 }
		pv1 { id = "pv-one" pe_start = 2048 pe_count = 100 }
	}
	logical_volumes {
		root {
			id = "lv-root"
			status = ["READ", "WRITE", "VISIBLE"]
			creation_time = 1700000000
			segment_count = 2
			segment1 { start_extent = 0 extent_count = 10 type = "striped" stripe_count = 1
				stripes = [ "pv0", 5 ] }
			segment2 { start_extent = 10 extent_count = 4 type = "striped" stripe_count = 2
				stripe_size = 128 stripes = [ "pv0", 20, "pv1", 0 ] }
		}
		thin { id = "x" status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "thin" } }
		hidden { id = "y" status = ["READ"] }
	}
}
contents = "Text Format Volume Group"
version = 1
"#;

    #[test]
    fn volumes_are_made_of_sectors_of_devices() {
        let group = VolumeGroup::parse(METADATA).unwrap();
        assert_eq!((group.name.as_str(), group.sequence), ("debian-vg", 4));
        let [root, thin] = group.volumes.as_slice() else {
            panic!("{group:?}")
        };
        let segments = root.segments.as_ref().unwrap();
        assert_eq!((segments[0].start, segments[0].len), (0, 81_920));
        let expected = Stripe {
            device: "pvzero".to_owned(),
            start: 5 * 8192 + 2048,
        };
        assert_eq!(segments[0].stripes, [expected]);
        assert_eq!((segments[1].chunk, segments[1].stripes.len()), (128, 2));
        assert_eq!(thin.segments, Err("thin".to_owned()));
    }

    #[test]
    fn metadata_that_makes_no_sense_is_refused() {
        for text in ["", "vg {", "vg { extent_size = 8192 }", "= 3", "vg { a [ }"] {
            assert!(VolumeGroup::parse(text).is_err(), "{text}");
        }
        let huge = METADATA.replace("extent_size = 8192", "extent_size = 18446744073709551615");
        assert_eq!(VolumeGroup::parse(&huge), Err(MetadataError::TooLong));
    }

    proptest! {
        #[test]
        fn no_damage_does_harm(at in 0..METADATA.len(), byte in 32..127_u8) {
            let mut text = METADATA.as_bytes().to_vec();
            text[at] = byte;
            let _ = VolumeGroup::parse(&String::from_utf8(text).unwrap());
        }
    }
}
