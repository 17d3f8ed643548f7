//! The node's configuration, `/etc/podvisor/podvisor.toml` or the file that containerd's runtime
//! options name. Every key has a default; an unknown one is an error.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podvisor_annotations::Limits;
use podvisor_proto::containerd::{Any, runc_options, runtimeoptions};
use podvisor_proto::quantity::Quantity;
use prost::{Message, Name};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::release::Release;

/// Where a node's configuration is unless containerd says otherwise.
pub const DEFAULT_PATH: &str = "/etc/podvisor/podvisor.toml";

/// What a node's administrator decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The guest's kernel; by default the one of the release this program belongs to.
    pub kernel: Option<PathBuf>,
    /// The guest's initial image; by default the release's.
    pub initrd: Option<PathBuf>,
    /// How long a guest may take from its start until its agent answers.
    #[serde(deserialize_with = "duration")]
    pub boot_timeout: Duration,
    /// How long the agent may take for one call.
    #[serde(deserialize_with = "duration")]
    pub agent_timeout: Duration,
    /// Memory in bytes for the containers of a pod that has no limit.
    #[serde(deserialize_with = "bytes")]
    pub default_memory: u64,
    /// Whether guest memory is backed by transparent huge pages.
    pub transparent_huge_pages: bool,
    /// Which annotations pods may use, and how far.
    pub annotations: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            boot_timeout: Duration::from_secs(60),
            agent_timeout: Duration::from_secs(60),
            default_memory: 512 << 20,
            transparent_huge_pages: true,
            annotations: Limits::default(),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file is not as it must be.
    #[error("{path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads the configuration at `path`, or at the default place, where it may be missing.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, optional) = match path {
            Some(path) => (path, false),
            None => (Path::new(DEFAULT_PATH), true),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if optional && e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// The kernel to boot.
    pub fn kernel(&self, release: &Release) -> PathBuf {
        self.kernel.clone().unwrap_or_else(|| release.kernel())
    }

    /// The initial image to boot with.
    pub fn initrd(&self, release: &Release) -> PathBuf {
        self.initrd.clone().unwrap_or_else(|| release.initrd())
    }
}

/// The configuration file that containerd's runtime options name: `ConfigPath` of a handler of our own
/// type, `BinaryName` of one of runc's, whose options have no other field for what a shim is to work
/// with. A name without a folder is none of a file: runc's own, which is looked up in `PATH`.
pub fn named_by(options: &Any) -> Option<PathBuf> {
    let kind = options.type_url.trim_start_matches('/');
    let value = options.value.as_slice();
    let named = if kind == runtimeoptions::Options::full_name() {
        runtimeoptions::Options::decode(value).ok()?.config_path
    } else if kind == runc_options::Options::full_name() {
        let named = runc_options::Options::decode(value).ok()?.binary_name;
        Some(named).filter(|named| named.contains('/'))?
    } else {
        return None;
    };
    Some(named)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Reads `500ms`, `8s` or `2m`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is no duration such as 500ms, 8s or 2m"))
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u32 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number.into())),
        "s" => Some(Duration::from_secs(number.into())),
        "m" => Some(Duration::from_secs(u64::from(number) * 60)),
        _ => None,
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Quantity::deserialize(deserializer).map(Quantity::bytes)
}

#[cfg(test)]
mod tests {
    use podvisor_annotations::Key;
    use podvisor_proto::containerd::any_of;

    use super::*;

    #[test]
    fn runtime_options_name_a_configuration() {
        let options = runtimeoptions::Options {
            config_path: "/etc/x.toml".into(),
            ..Default::default()
        };
        assert_eq!(named_by(&any_of(&options)), Some("/etc/x.toml".into()));
        let other = Any {
            type_url: "other.v1.Options".into(),
            value: vec![0xff],
        };
        assert_eq!(named_by(&other), None);
    }

    #[test]
    fn options_of_runcs_type_name_it_as_the_binary() {
        let named = |name: &str| {
            named_by(&any_of(&runc_options::Options {
                binary_name: name.into(),
            }))
        };
        assert_eq!(
            named("/etc/podvisor/x.toml"),
            Some("/etc/podvisor/x.toml".into())
        );
        assert_eq!(named("runc"), None);
        assert_eq!(named(""), None);
        // Those of a container with a user namespace: `io_uid` and `io_gid`.
        let users = Any {
            type_url: runc_options::Options::full_name(),
            value: vec![0x20, 0xe8, 0x07, 0x28, 0xe8, 0x07],
        };
        assert_eq!(named_by(&users), None);
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("8s"), Some(Duration::from_secs(8)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for wrong in ["", "8", "s", "-8s", "8 s", "8h", "99999999999s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn keys_replace_defaults_and_unknown_ones_are_refused() {
        let config: Config =
            toml::from_str("boot_timeout = \"8s\"\ndefault_memory = \"1Gi\"").unwrap();
        assert_eq!(config.boot_timeout, Duration::from_secs(8));
        assert_eq!(config.default_memory, 1 << 30);
        assert_eq!(config.kernel, None);
        let error = toml::from_str::<Config>("kernal = \"/x\"").unwrap_err();
        assert!(error.to_string().contains("kernal"), "{error}");
    }

    #[test]
    fn annotations_are_limited_by_name_and_amount() {
        let config: Config = toml::from_str(
            "[annotations]\nallow = [\"cpus\", \"podvisor.io/memory\"]\n\
             [annotations.max]\ncpus = 8\nmemory = \"16Gi\"",
        )
        .unwrap();
        assert_eq!(config.annotations.allow, Some(vec![Key::Cpus, Key::Memory]));
        assert_eq!(config.annotations.max.cpus.unwrap().get(), 8);
        assert_eq!(config.annotations.max.memory.unwrap().bytes(), 16 << 30);
        for (text, named) in [
            ("[annotations]\nallow = [\"cpsu\"]", "cpsu"),
            (
                "[annotations]\nmax.cpus = 0",
                "\"0\" is not a number of vCPUs",
            ),
            ("[annotations]\nmax.gpus = 1", "gpus"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Config::load(Some(Path::new("/nowhere/podvisor.toml"))).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }));
    }
}
