//! The part of the OCI runtime specification that the agent honours.
//!
//! A field that is neither honoured nor harmless is not declared here, and an
//! undeclared field fails the parse with its name: a container never runs with
//! a setting silently dropped. Fields named with a leading underscore are known
//! and mean nothing inside the guest.

mod linux;
mod process;
mod resources;
mod seccomp;

use serde::Deserialize;
use serde::de::IgnoredAny;

pub use linux::{Device, Linux, NamespaceKind};
pub use process::{Capabilities, Process, Rlimit};
pub use resources::{Cpu, DeviceRule, HugepageLimit, Memory, Resources};
pub use seccomp::{Seccomp, SeccompArg, SeccompRule};

/// A container as config.json describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(default, rename = "ociVersion")]
    _oci_version: IgnoredAny,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    /// What the container runs.
    pub process: Process,
    /// Its root file system.
    pub root: Root,
    /// Host name, set when the container has a UTS namespace of its own.
    #[serde(default)]
    pub hostname: String,
    /// NIS domain name, set under the same condition.
    #[serde(default)]
    pub domainname: String,
    /// Mounts, in the order in which they are made.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Linux settings.
    pub linux: Linux,
}

impl Spec {
    /// Parses config.json and checks what its types alone cannot say.
    ///
    /// # Errors
    ///
    /// [`OciError`] names the field that is malformed or cannot be honoured.
    pub fn parse(json: &[u8]) -> Result<Self, OciError> {
        let spec: Self = serde_json::from_slice(json)?;
        spec.process.check()?;
        spec.linux.check()?;
        if spec.root.path.is_empty() {
            return Err(OciError::Unsupported {
                field: "root.path",
                reason: "is empty",
            });
        }
        Ok(spec)
    }
}

impl Spec {
    /// Who a user of the container is in the guest, when it is another there: the container itself
    /// can give such a one nothing of the guest's.
    #[must_use]
    pub fn stream_owner(&self, uid: u32) -> Option<u32> {
        let mapped = self.linux.has_own(NamespaceKind::User);
        mapped.then(|| self.linux.user_in_guest(uid))
    }
}

/// The container's root file system.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Root {
    /// Where it lies in the guest.
    pub path: String,
    /// Whether the container sees it read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// One mount of the container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// Path inside the container.
    pub destination: String,
    /// File system type; empty or `bind` with a bind option means a bind mount.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Device, pseudo name, or the guest path of a bind mount.
    #[serde(default)]
    pub source: String,
    /// Mount options as in fstab(5).
    #[serde(default)]
    pub options: Vec<String>,
}

/// Why a specification is refused.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Not JSON of the known shape; the source names line and field.
    #[error("the OCI specification does not parse")]
    Parse(#[from] serde_json::Error),
    /// A field asks for something this guest does not do.
    #[error("{field} {reason}")]
    Unsupported {
        /// Path of the field, as in the specification.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Parses the JSON of an additional process.
///
/// # Errors
///
/// As [`Spec::parse`].
pub fn parse_process(json: &[u8]) -> Result<Process, OciError> {
    let process: Process = serde_json::from_slice(json)?;
    process.check()?;
    Ok(process)
}

/// Parses the JSON of new resource limits.
///
/// # Errors
///
/// As [`Spec::parse`].
pub fn parse_resources(json: &[u8]) -> Result<Resources, OciError> {
    let resources: Resources = serde_json::from_slice(json)?;
    resources.check()?;
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"ociVersion":"1.1.0","process":{"user":{"uid":0,"gid":0},
        "args":["sh"],"cwd":"/"},"root":{"path":"/rootfs"},"linux":{}}"#;

    #[test]
    fn a_minimal_specification_parses() {
        let spec = Spec::parse(MINIMAL.as_bytes()).unwrap();
        assert_eq!(spec.process.args, ["sh"]);
        assert!(spec.mounts.is_empty());
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let json = MINIMAL.replace(r#""linux":{}"#, r#""linux":{"intelRdt":{}}"#);
        let OciError::Parse(error) = Spec::parse(json.as_bytes()).unwrap_err() else {
            panic!("another error");
        };
        assert!(error.to_string().contains("intelRdt"), "{error}");
    }

    #[test]
    fn a_namespace_by_path_is_refused() {
        let json = MINIMAL.replace(
            r#""linux":{}"#,
            r#""linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}"#,
        );
        let error = Spec::parse(json.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "linux.namespaces names a path, which means nothing in the guest"
        );
    }

    #[test]
    fn a_process_without_arguments_is_refused() {
        let error =
            parse_process(br#"{"user":{"uid":0,"gid":0},"args":[],"cwd":"/"}"#).unwrap_err();
        assert_eq!(error.to_string(), "process.args is empty");
    }
}
