//! A container's OCI spec as the guest gets it: paths become the guest's, and what only the host
//! knows goes.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Mount, Spec};
use thiserror::Error;

use super::block_devices::{self, BlockDevice, GuestNumber};
use super::confinement::{self, SelinuxTypeError};
use super::device_nodes::{self, HostDeviceError};
use super::namespaces::{self, NamespaceError};
use super::users::UserMaps;
use super::volume::{self, BindMount, VolumeError};

/// A spec that a guest cannot honour.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GuestSpecError {
    /// A device of the host.
    #[error(transparent)]
    Device(#[from] HostDeviceError),
    /// A namespace of the host.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A policy of the host.
    #[error(transparent)]
    Selinux(#[from] SelinuxTypeError),
    /// A bind mount of nothing.
    #[error("mounts: the bind mount at {0} has no source")]
    NoSource(PathBuf),
    /// A bind mount that a VM cannot have.
    #[error("mounts: {destination}")]
    Volume {
        /// Where the container would see it.
        destination: PathBuf,
        /// Why not.
        source: VolumeError,
    },
    /// A class of the host's caches and memory bandwidth.
    #[error(
        "linux.intelRdt: the classes of the host's caches (rdt.resources.beta.kubernetes.io) are not \
         for VM pods"
    )]
    IntelRdt,
    /// No root file system.
    #[error("root: the container has no root file system")]
    NoRoot,
}

/// What a bind mount becomes in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMount {
    /// Its source there.
    pub source: PathBuf,
    /// Whether the host alone keeps it from being written: the guest's mount is all or nothing,
    /// and mounts below this one may be written.
    pub host_keeps_read_only: bool,
}

/// A spec on its way into the guest.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    spec: Spec,
    binds: Vec<BindMount>,
    apparmor_profile: Option<String>,
    blocks: Vec<BlockDevice>,
}

impl GuestSpec {
    /// Takes out of `spec` what only the host knows, and finds its bind mounts. A `standalone`
    /// container owns its guest's network.
    ///
    /// # Errors
    /// [`GuestSpecError`].
    pub fn translate(spec: &Spec, standalone: bool) -> Result<Self, GuestSpecError> {
        let mut spec = spec.clone();
        drop_hooks(&mut spec);
        let apparmor_profile = translate_process(&mut spec)?;
        translate_linux(&mut spec, standalone)?;
        let binds = bind_mounts(spec.mounts().as_deref().unwrap_or_default())?;
        let linux = spec.linux().as_ref();
        let blocks = linux.map(block_devices::of).unwrap_or_default();
        Ok(Self {
            spec,
            binds,
            apparmor_profile,
            blocks,
        })
    }

    /// The AppArmor profile of the host that the pod names, for the guest to enforce.
    pub fn apparmor_profile(&self) -> Option<&str> {
        self.apparmor_profile.as_deref()
    }

    /// The bind mounts whose sources are still the host's.
    pub fn binds(&self) -> &[BindMount] {
        &self.binds
    }

    /// The block devices whose numbers are still the host's.
    pub fn blocks(&self) -> &[BlockDevice] {
        &self.blocks
    }

    /// Puts the guest's root folder and the guest's sources of all bind mounts in place and
    /// yields the spec as JSON. `placed` has one mount for each of [`Self::binds`],
    /// `numbers` one number for each of [`Self::blocks`].
    ///
    /// # Errors
    /// [`GuestSpecError::NoRoot`].
    pub fn placed(
        mut self,
        root: &Path,
        placed: &[GuestMount],
        numbers: &[GuestNumber],
    ) -> Result<Vec<u8>, GuestSpecError> {
        let spec_root = self
            .spec
            .root_mut()
            .as_mut()
            .ok_or(GuestSpecError::NoRoot)?;
        spec_root.set_path(root.to_owned());
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        for (bind, placed) in self.binds.iter().zip(placed) {
            let Some(mount) = mounts.get_mut(bind.index) else {
                continue;
            };
            mount.set_source(Some(placed.source.clone()));
            // In the guest files have the owners that they are to have.
            mount.set_uid_mappings(None);
            mount.set_gid_mappings(None);
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| match option.as_str() {
                "idmap" | "ridmap" => false,
                "ro" => !placed.host_keeps_read_only,
                _ => true,
            });
            mount.set_options(Some(options));
        }
        self.spec.set_mounts(Some(mounts));
        if let Some(linux) = self.spec.linux_mut() {
            block_devices::renumber(linux, &self.blocks, numbers);
        }
        // A spec consists of maps with string keys, lists, strings and numbers: all of it is JSON.
        Ok(serde_json::to_vec(&self.spec).unwrap_or_default())
    }
}

/// Hooks are programs of the host, which a guest does not have: they go, and the log names them.
fn drop_hooks(spec: &mut Spec) {
    if let Some(hooks) = spec.hooks() {
        let all = [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ];
        let all = all.into_iter().flatten().flatten();
        let paths: Vec<&PathBuf> = all.map(Hook::path).collect();
        if !paths.is_empty() {
            tracing::warn!(?paths, "OCI hooks do not run for a VM pod");
        }
    }
    spec.set_hooks(None);
}

/// Leaves only those labels that the pod names; yields the AppArmor profile among them.
fn translate_process(spec: &mut Spec) -> Result<Option<String>, GuestSpecError> {
    let Some(process) = spec.process_mut() else {
        return Ok(None);
    };
    confinement::check_selinux(process)?;
    process.set_selinux_label(None);
    let profile = confinement::apparmor_profile(process).map(str::to_owned);
    process.set_apparmor_profile(profile.clone());
    Ok(profile)
}

fn translate_linux(spec: &mut Spec, standalone: bool) -> Result<(), GuestSpecError> {
    namespaces::check(spec, standalone)?;
    let own = namespaces::own(spec, standalone);
    let privileged = device_nodes::is_privileged(spec.mounts().as_deref().unwrap_or_default());
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    linux.set_cgroups_path(None);
    linux.set_mount_label(None);
    if linux.intel_rdt().is_some() {
        return Err(GuestSpecError::IntelRdt);
    }
    linux.set_namespaces(Some(own));
    Ok(device_nodes::translate(linux, privileged)?)
}

/// Makes sure that a pod's guest can run what its spec asks for.
///
/// # Errors
/// [`GuestSpecError::Namespace`], [`GuestSpecError::Selinux`].
pub fn check_pod(spec: &Spec) -> Result<(), GuestSpecError> {
    namespaces::check_pod(spec)?;
    let process = spec.process().as_ref();
    Ok(process.map_or(Ok(()), confinement::check_selinux)?)
}

fn bind_mounts(mounts: &[Mount]) -> Result<Vec<BindMount>, GuestSpecError> {
    let mut binds = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let options = mount.options().as_deref().unwrap_or_default();
        if !volume::is_bind(mount.typ().as_deref(), options) {
            continue;
        }
        let destination = mount.destination();
        let source = mount
            .source()
            .as_ref()
            .ok_or_else(|| GuestSpecError::NoSource(destination.clone()))?;
        let owners = UserMaps::of_mount(mount);
        let source = volume::classify(source, destination, options, owners).map_err(|source| {
            GuestSpecError::Volume {
                destination: destination.clone(),
                source,
            }
        })?;
        binds.push(BindMount {
            index,
            destination: destination.clone(),
            source,
        });
    }
    Ok(binds)
}

/// The pod's /dev/shm size in bytes, when its spec says one.
pub fn shared_memory_size(spec: &Spec) -> Option<u64> {
    let mounts = spec.mounts().as_ref()?;
    let shm = mounts
        .iter()
        .find(|mount| mount.destination() == Path::new("/dev/shm"))?;
    let options = shm.options().as_ref()?;
    let size = options
        .iter()
        .find_map(|option| option.strip_prefix("size="))?;
    match size.strip_suffix('k') {
        Some(kib) => kib.parse::<u64>().ok()?.checked_mul(1024),
        None => size.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxNamespaceType;

    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn placed_at(source: &str) -> GuestMount {
        GuestMount {
            source: source.into(),
            host_keeps_read_only: false,
        }
    }

    const CONTAINER: &str = r#"{
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0},
                    "apparmorProfile": "cri-containerd.apparmor.d",
                    "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"},
        "hooks": {"prestart": [{"path": "/bin/hook"}]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/hosts", "options": ["rbind", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]}
        ],
        "linux": {
            "cgroupsPath": "/kubepods/x",
            "namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
                           {"type": "network", "path": "/proc/7/ns/net"}, {"type": "mount"}]
        }
    }"#;

    #[test]
    fn what_only_the_host_knows_goes() {
        let translated = GuestSpec::translate(&spec(CONTAINER), false).unwrap();
        let sources = ["/s/hosts", "/s/shm"].map(placed_at);
        let json = translated
            .placed(Path::new("/s/root"), &sources, &[])
            .unwrap();
        let guest: Spec = serde_json::from_slice(&json).unwrap();
        assert!(guest.hooks().is_none());
        let linux = guest.linux().as_ref().unwrap();
        assert!(linux.cgroups_path().is_none());
        let kinds: Vec<_> = linux
            .namespaces()
            .as_ref()
            .unwrap()
            .iter()
            .map(oci_spec::runtime::LinuxNamespace::typ)
            .collect();
        assert_eq!(kinds, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount]);
        let process = guest.process().as_ref().unwrap();
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
    }

    #[test]
    fn bind_mounts_get_the_guests_sources_and_others_stay() {
        let translated = GuestSpec::translate(&spec(CONTAINER), false).unwrap();
        assert_eq!(translated.binds().len(), 2);
        let sources = ["/s/hosts", "/s/shm"].map(placed_at);
        let json = translated
            .placed(Path::new("/s/root"), &sources, &[])
            .unwrap();
        let guest: Spec = serde_json::from_slice(&json).unwrap();
        let found: Vec<_> = guest
            .mounts()
            .as_ref()
            .unwrap()
            .iter()
            .map(|m| m.source().clone().unwrap())
            .collect();
        assert_eq!(found, ["proc", "/s/hosts", "/s/shm"].map(PathBuf::from));
        assert_eq!(guest.root().as_ref().unwrap().path(), Path::new("/s/root"));
    }

    #[test]
    fn a_profile_that_the_pod_names_stays() {
        let named = CONTAINER.replace("cri-containerd.apparmor.d", "mine");
        let translated = GuestSpec::translate(&spec(&named), false).unwrap();
        assert_eq!(translated.apparmor_profile(), Some("mine"));
        let default = GuestSpec::translate(&spec(CONTAINER), false).unwrap();
        assert_eq!(default.apparmor_profile(), None);
    }

    #[test]
    fn a_mount_that_the_host_keeps_read_only_is_writable_in_the_guest() {
        let translated = GuestSpec::translate(&spec(CONTAINER), false).unwrap();
        let mut sources = ["/s/hosts", "/s/shm"].map(placed_at);
        sources[0].host_keeps_read_only = true;
        let json = translated
            .placed(Path::new("/s/root"), &sources, &[])
            .unwrap();
        let guest: Spec = serde_json::from_slice(&json).unwrap();
        let options = guest.mounts().as_ref().unwrap()[1].options().clone();
        assert_eq!(options.unwrap(), ["rbind"]);
    }

    #[test]
    fn a_mount_towards_the_host_is_refused_by_its_destination() {
        let shared = spec(
            r#"{"ociVersion":"1.1.0","mounts":[{"destination":"/mnt","source":"/data",
                "options":["rbind","rshared"]}]}"#,
        );
        let error = GuestSpec::translate(&shared, false).unwrap_err();
        assert_eq!(error.to_string(), "mounts: /mnt");
    }

    #[test]
    fn what_a_guest_cannot_honour_is_refused() {
        for (part, why) in [
            (r#""namespaces":[{"type":"user"}]"#, "hostUsers"),
            (
                r#""devices":[{"path":"/dev/my-kvm","type":"c","major":10,"minor":232}]"#,
                "/dev/my-kvm",
            ),
            (r#""intelRdt":{"closID":"fast"}"#, "linux.intelRdt"),
        ] {
            let json = format!(r#"{{"ociVersion":"1.1.0","linux":{{{part}}}}}"#);
            let error = GuestSpec::translate(&spec(&json), false).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn the_size_of_shared_memory_is_in_its_mount() {
        let with = |options: &str| {
            shared_memory_size(&spec(&format!(
                r#"{{"ociVersion":"1.1.0","mounts":[{{"destination":"/dev/shm","options":[{options}]}}]}}"#
            )))
        };
        assert_eq!(with(r#""size=65536k""#), Some(64 << 20));
        assert_eq!(with(r#""nosuid""#), None);
    }
}
