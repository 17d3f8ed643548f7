//! PersistentVolumeClaims: storage that outlives its pod.

use podvisor_proto::quantity::Quantity;
use serde::Deserialize;

use super::objects::ObjectMeta;

/// A claim, of a document or of a StatefulSet's templates.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClaimDocument {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Claim,
}

/// What is claimed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    #[serde(default)]
    pub volume_mode: VolumeMode,
    #[serde(default)]
    resources: ClaimResources,
    /// One pod on one machine has every access.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    access_modes: Vec<String>,
    /// There is one class here: files and folders of this machine.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, and without consequence here")]
    storage_class_name: Option<String>,
}

impl Claim {
    /// How large it is, in bytes; None when it does not say.
    pub fn bytes(&self) -> Option<u64> {
        self.resources.requests.storage.map(Quantity::bytes)
    }
}

/// Whether a volume is a folder or a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum VolumeMode {
    #[default]
    Filesystem,
    Block,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimResources {
    requests: StorageList,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct StorageList {
    storage: Option<Quantity>,
}
