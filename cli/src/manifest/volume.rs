//! A volume of a pod, as far as `podvisor run` supports it.

use podvisor_proto::quantity::Quantity;
use serde::Deserialize;

use super::names::{Key, Name, RelativePath};

/// A volume. With no source it is an emptyDir, as in the API server.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub name: Name,
    pub empty_dir: Option<EmptyDir>,
    pub host_path: Option<HostPath>,
    pub config_map: Option<ConfigMapVolume>,
    pub secret: Option<SecretVolume>,
    pub projected: Option<ProjectedVolume>,
    pub persistent_volume_claim: Option<ClaimVolume>,
}

impl Volume {
    /// How many sources it names.
    pub fn sources(&self) -> usize {
        let given = [
            self.empty_dir.is_some(),
            self.host_path.is_some(),
            self.config_map.is_some(),
            self.secret.is_some(),
            self.projected.is_some(),
            self.persistent_volume_claim.is_some(),
        ];
        given.iter().filter(|given| **given).count()
    }

    /// The volume of a claim.
    pub(super) fn of_claim(name: Name, claim: ClaimVolume) -> Self {
        Self {
            name,
            empty_dir: None,
            host_path: None,
            config_map: None,
            secret: None,
            projected: None,
            persistent_volume_claim: Some(claim),
        }
    }
}

/// Storage that outlives the pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimVolume {
    pub claim_name: Name,
    #[serde(default)]
    pub read_only: bool,
}

/// A folder that lives as long as its pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EmptyDir {
    pub medium: Medium,
    /// Enforced for `Memory` only; the kubelet evicts for the other.
    pub size_limit: Option<Quantity>,
}

/// What an emptyDir lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Medium {
    #[default]
    #[serde(rename = "")]
    Disk,
    Memory,
}

/// A file or folder of this machine.
#[derive(Clone, Debug, Deserialize)]
pub struct HostPath {
    pub path: String,
    #[serde(default, rename = "type")]
    pub kind: HostPathKind,
}

/// What a hostPath must be, or is made when it is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum HostPathKind {
    #[default]
    #[serde(rename = "")]
    Any,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// A ConfigMap as files.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
    pub name: Name,
    #[serde(default)]
    pub items: Vec<KeyToPath>,
    #[serde(default)]
    pub default_mode: FileMode,
    #[serde(default)]
    pub optional: bool,
}

/// A Secret as files.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolume {
    pub secret_name: Name,
    #[serde(default)]
    pub items: Vec<KeyToPath>,
    #[serde(default)]
    pub default_mode: FileMode,
    #[serde(default)]
    pub optional: bool,
}

/// Several sources in one folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectedVolume {
    #[serde(default)]
    pub sources: Vec<Projection>,
    #[serde(default)]
    pub default_mode: FileMode,
}

/// One source of a projected volume.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Projection {
    pub config_map: Option<ObjectProjection>,
    pub secret: Option<ObjectProjection>,
}

/// A ConfigMap or Secret in a projected volume.
#[derive(Clone, Debug, Deserialize)]
pub struct ObjectProjection {
    pub name: Name,
    #[serde(default)]
    pub items: Vec<KeyToPath>,
    #[serde(default)]
    pub optional: bool,
}

/// Which key becomes which file.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyToPath {
    pub key: Key,
    pub path: RelativePath,
    pub mode: Option<FileMode>,
}

/// Permission bits of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct FileMode(u32);

impl FileMode {
    /// As chmod(2) takes them.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Default for FileMode {
    fn default() -> Self {
        Self(0o644)
    }
}

impl TryFrom<u32> for FileMode {
    type Error = String;

    fn try_from(bits: u32) -> Result<Self, String> {
        if bits <= 0o777 {
            Ok(Self(bits))
        } else {
            Err(format!("{bits:#o} is not within 0777"))
        }
    }
}
