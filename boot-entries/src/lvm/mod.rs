//! LVM2's metadata: which extents of which devices make up which volume (format_text of LVM2).

mod label;
mod metadata;
mod text;

pub use label::{LabelError, MAX_METADATA_LEN, physical_volume};
pub use metadata::{LogicalVolume, MetadataError, Segment, Stripe, VolumeGroup};

/// What a physical volume says of itself and of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// Its identifier.
    pub id: String,
    /// The group's metadata, as text.
    pub metadata: String,
}
