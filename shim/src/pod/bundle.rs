//! A bundle's `config.json`, and what containerd's CRI plugin says in its annotations
//! (containerd, `internal/cri/annotations`).

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::Spec;
use thiserror::Error;

use super::resources::{ResourcesError, Share};
use super::sizing::DEFAULT_CPU_PERIOD_US;

pub(super) const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
pub(super) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
pub(super) const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
pub(super) const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
pub(super) const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// What a task is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The pod itself; it has no process.
    Sandbox,
    /// A container of the pod `sandbox_id`.
    Member {
        /// The pod's identifier.
        sandbox_id: String,
    },
    /// A container without a pod, as `ctr run` makes it: it gets a machine of its own.
    Standalone,
}

/// Why a bundle cannot be used.
#[derive(Debug, Error)]
pub enum BundleError {
    /// There is no `config.json`.
    #[error("{0} has no config.json")]
    Missing(PathBuf),
    /// `config.json` is no OCI runtime spec.
    #[error("cannot read {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: OciSpecError,
    },
    /// containerd wrote an annotation that it does not write.
    #[error("annotation {key} has the value {value:?}")]
    Annotation {
        /// The annotation's key.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

/// A folder with an OCI runtime spec.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The folder.
    pub path: PathBuf,
    /// Its `config.json`.
    pub spec: Spec,
}

/// The sums of a pod's limits, as far as it has limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// CPU time in microseconds that may be used in each period.
    pub cpu_quota_us: Option<u64>,
    /// Length of that period in microseconds.
    pub cpu_period_us: Option<u64>,
}

impl Limits {
    /// The CPU limit in thousandths of a CPU, if there is one.
    pub fn millicpus(&self) -> Option<u64> {
        let period = self.cpu_period_us.unwrap_or(DEFAULT_CPU_PERIOD_US).max(1);
        self.cpu_quota_us
            .map(|quota| quota.saturating_mul(1000) / period)
    }
}

impl Bundle {
    /// What its container is given.
    ///
    /// # Errors
    /// [`ResourcesError`].
    pub fn share(&self) -> Result<Share, ResourcesError> {
        let linux = self.spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        resources.map_or_else(|| Ok(Share::default()), Share::of)
    }

    /// Reads the bundle at `path`.
    ///
    /// # Errors
    /// [`BundleError::Missing`], [`BundleError::Parse`].
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let file = path.join("config.json");
        if !file.exists() {
            return Err(BundleError::Missing(path.to_owned()));
        }
        let spec = Spec::load(&file).map_err(|source| BundleError::Parse { path: file, source })?;
        Ok(Self {
            path: path.to_owned(),
            spec,
        })
    }

    /// Reads the bundle at `path` when there is one: containerd's sandboxer "shim" gives a pod a
    /// folder without a spec.
    ///
    /// # Errors
    /// [`BundleError::Parse`].
    pub fn find(path: &Path) -> Result<Option<Self>, BundleError> {
        match Self::load(path) {
            Ok(bundle) => Ok(Some(bundle)),
            Err(BundleError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the task is to its pod.
    ///
    /// # Errors
    /// [`BundleError::Annotation`] for a container type that is neither.
    pub fn role(&self) -> Result<Role, BundleError> {
        match (self.annotation(CONTAINER_TYPE), self.annotation(SANDBOX_ID)) {
            (None, None) => Ok(Role::Standalone),
            (Some("sandbox"), _) => Ok(Role::Sandbox),
            (Some("container") | None, Some(id)) => Ok(Role::Member {
                sandbox_id: id.to_owned(),
            }),
            (other, _) => Err(BundleError::Annotation {
                key: CONTAINER_TYPE,
                value: other.unwrap_or_default().to_owned(),
            }),
        }
    }

    /// The limits a machine is sized by: of a pod what CRI sums up, of a standalone container its
    /// own.
    ///
    /// # Errors
    /// [`BundleError::Annotation`] for what is no number.
    pub fn limits(&self) -> Result<Limits, BundleError> {
        if self.role()? == Role::Sandbox {
            return Ok(Limits {
                memory: self.positive(SANDBOX_MEMORY)?,
                cpu_quota_us: self.positive(SANDBOX_CPU_QUOTA)?,
                cpu_period_us: self.positive(SANDBOX_CPU_PERIOD)?,
            });
        }
        let resources = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref());
        let memory = resources.and_then(|resources| resources.memory().as_ref()?.limit());
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        Ok(Limits {
            memory: memory.and_then(positive),
            cpu_quota_us: cpu.and_then(|cpu| cpu.quota()).and_then(positive),
            cpu_period_us: cpu
                .and_then(|cpu| cpu.period())
                .filter(|period| *period > 0),
        })
    }

    /// How likely the container is taken when the host is out of memory, -1000 to 1000.
    pub fn oom_score(&self) -> i64 {
        let process = self.spec.process().as_ref();
        let score = process.and_then(|process| process.oom_score_adj());
        score.unwrap_or_default().into()
    }

    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.spec
            .annotations()
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// A number that means "none" unless it is positive.
    fn positive(&self, key: &'static str) -> Result<Option<u64>, BundleError> {
        let Some(value) = self.annotation(key) else {
            return Ok(None);
        };
        let invalid = |_| BundleError::Annotation {
            key,
            value: value.to_owned(),
        };
        let number: i64 = value.parse().map_err(invalid)?;
        Ok(u64::try_from(number).ok().filter(|number| *number > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(json: &str) -> Bundle {
        Bundle {
            path: PathBuf::from("/b"),
            spec: serde_json::from_str(json).unwrap(),
        }
    }

    #[test]
    fn cri_says_what_a_task_is() {
        let annotated = |kind: &str| {
            bundle(&format!(
                r#"{{"ociVersion":"1.1.0","annotations":{{"{CONTAINER_TYPE}":"{kind}","{SANDBOX_ID}":"pod1"}}}}"#
            ))
        };
        assert_eq!(annotated("sandbox").role().unwrap(), Role::Sandbox);
        assert_eq!(
            annotated("container").role().unwrap(),
            Role::Member {
                sandbox_id: "pod1".into()
            }
        );
        assert!(annotated("other").role().is_err());
        assert_eq!(
            bundle(r#"{"ociVersion":"1.1.0"}"#).role().unwrap(),
            Role::Standalone
        );
    }

    #[test]
    fn a_pods_limits_are_the_sums_in_its_annotations() {
        let pod = bundle(&format!(
            r#"{{"ociVersion":"1.1.0","annotations":{{"{CONTAINER_TYPE}":"sandbox",
                "{SANDBOX_MEMORY}":"268435456","{SANDBOX_CPU_QUOTA}":"0","{SANDBOX_CPU_PERIOD}":"100000"}}}}"#
        ));
        let expected = Limits {
            memory: Some(256 << 20),
            cpu_quota_us: None,
            cpu_period_us: Some(100_000),
        };
        assert_eq!(pod.limits().unwrap(), expected);
    }

    #[test]
    fn a_folder_without_a_spec_is_told_from_one_with_a_broken_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Bundle::load(folder.path()),
            Err(BundleError::Missing(_))
        ));
        std::fs::write(folder.path().join("config.json"), "{").unwrap();
        assert!(matches!(
            Bundle::load(folder.path()),
            Err(BundleError::Parse { .. })
        ));
    }
}
