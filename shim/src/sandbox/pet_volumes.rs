//! The volumes of a machine: what of its container's mounts it is given, under which name, and where
//! it is to see it.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use podvisor_devices::fs::{CachePolicy, ExportOptions};
use podvisor_proto::agent::{FS_TAG, MEMORY_DIR, MIRROR_DIR, SHARED_DIR};

use super::error::TaskError;
use super::mirror::Original;
use super::volumes::{SHARED_CACHE, writes};
use crate::guest::SharedFolder;
use crate::host::{HostOps, MemoryOrigin, VolumeOrigin, VolumeRequest};
use crate::pod::users::UserMaps;
use crate::pod::volume::{
    self, Access, Propagation, SHARED_MEMORY, Source, VolumeError, guest_device,
    is_atomically_written, part_of,
};

/// What containers get mounted and machines have of their own, beside the pod's shared memory.
const OWN_FILES: [&str; 4] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/dev/termination-log",
];
/// Folders that a machine's own system lives in: what is mounted on one hides what boots.
const SYSTEM_FOLDERS: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/lib",
    "/var/run",
];
/// Folders that are a machine's kernel's or our agent's with all that is below, but for /dev/shm, which is
/// everybody's.
const WHOLE_FOLDERS: [&str; 4] = ["/dev", "/proc", "/run/podvisor", "/sys"];
/// Bytes of a name, which is made of a path.
const NAME_LEN_MAX: usize = 64;

/// A volume and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MachineVolume {
    /// Where the machine sees it.
    pub target: String,
    /// Whether it is only read.
    pub read_only: bool,
    /// What it is.
    pub content: Content,
}

/// What a volume is in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A folder or file of the shared file system, or of another one that is there.
    At(PathBuf),
    /// A folder that the kubelet replaces as a whole: a copy that follows, and where it is shared,
    /// for when it cannot be copied.
    Mirror {
        /// Where it is on the host.
        original: Original,
        /// The copy's name.
        name: String,
        /// Where it is shared.
        shared: PathBuf,
    },
    /// A file system in the machine's memory.
    Memory {
        /// What the host has.
        origin: MemoryOrigin,
        /// Its name.
        name: String,
    },
}

impl Content {
    /// Where the machine finds it.
    pub fn source(&self) -> PathBuf {
        match self {
            Self::At(path) => path.clone(),
            Self::Mirror { name, .. } => Path::new(MIRROR_DIR).join(name),
            Self::Memory { origin, name } => {
                part_of(&Path::new(MEMORY_DIR).join(name), &origin.below)
            }
        }
    }
}

/// The volumes of a machine.
#[derive(Default)]
pub(super) struct VolumePlan {
    /// What is shared, each with what it is opened by.
    shared: Vec<(VolumeRequest, SharedFolder)>,
    /// All volumes; those below others come after them.
    pub volumes: Vec<MachineVolume>,
}

impl VolumePlan {
    /// The volumes of `spec` but those mounted at paths of `others`, which the machine has in another
    /// way.
    ///
    /// # Errors
    /// [`TaskError::Mount`] names one that a machine cannot have.
    pub fn of(spec: &Spec, host: &dyn HostOps, others: &[&Path]) -> Result<Self, TaskError> {
        let mut plan = Self::default();
        for mount in bind_mounts(spec) {
            let destination = mount.destination();
            if others.contains(&destination.as_path()) {
                continue;
            }
            let added = plan.add(mount, host);
            added.map_err(|source| TaskError::Mount {
                destination: destination.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(plan)
    }

    /// What is shared with the machine.
    pub fn into_parts(self) -> (Vec<SharedFolder>, Vec<MachineVolume>) {
        let shared = self.shared.into_iter().map(|(_, folder)| folder);
        (shared.collect(), self.volumes)
    }

    fn add(&mut self, mount: &Mount, host: &dyn HostOps) -> Result<(), TaskError> {
        let destination = mount.destination();
        let target = place(destination)?;
        if UserMaps::of_mount(mount).is_some() {
            let reason = "hostUsers is false, and a machine has all users of its own";
            return Err(TaskError::Invalid(reason.to_owned()));
        }
        let source = mount.source().clone().unwrap_or_default();
        let options = mount.options().as_deref().unwrap_or_default();
        let Source::Host {
            path,
            access,
            propagation,
            ..
        } = volume::classify(&source, destination, options, None)?
        else {
            return Ok(());
        };
        let volume = VolumeRequest {
            path,
            propagation,
            owners: None,
        };
        let content = self.content(volume, access, destination, host)?;
        self.volumes.push(MachineVolume {
            target,
            read_only: access != Access::ReadWrite,
            content,
        });
        Ok(())
    }

    fn content(
        &mut self,
        volume: VolumeRequest,
        access: Access,
        destination: &Path,
        host: &dyn HostOps,
    ) -> Result<Content, TaskError> {
        let path = volume.path.clone();
        let bounded = |has_mounts: bool| ExportOptions {
            writes: writes(access, has_mounts && access == Access::ReadOnly),
            cache: CachePolicy::Bounded(SHARED_CACHE),
        };
        if access != Access::ReadWrite && is_atomically_written(&path) {
            let name = self.share(volume, bounded(false), destination, host)?;
            return Ok(Content::Mirror {
                original: Original {
                    folder: path,
                    owners: None,
                },
                shared: Path::new(SHARED_DIR).join(&name),
                name,
            });
        }
        match host.inspect_volume(&path)? {
            VolumeOrigin::Memory(origin) => Ok(self.memory(origin, destination)),
            VolumeOrigin::EmptyDir { folder, below } => {
                let options = ExportOptions {
                    writes: writes(access, false),
                    cache: CachePolicy::Always,
                };
                let volume = VolumeRequest {
                    path: folder,
                    propagation: Propagation::Private,
                    owners: None,
                };
                let name = self.share(volume, options, destination, host)?;
                let folder = Path::new(SHARED_DIR).join(name);
                Ok(Content::At(part_of(&folder, &below)))
            }
            VolumeOrigin::Shared { has_mounts } => {
                let name = self.share(volume, bounded(has_mounts), destination, host)?;
                Ok(Content::At(Path::new(SHARED_DIR).join(name)))
            }
            VolumeOrigin::Device { block: true, .. } => Err(VolumeError::BlockDevice(path).into()),
            VolumeOrigin::Device { major, minor, .. } => match guest_device(major, minor) {
                Some(device) => Ok(Content::At(device.into())),
                None => Err(VolumeError::CharacterDevice(path).into()),
            },
            VolumeOrigin::Socket => Err(VolumeError::Socket(path).into()),
            VolumeOrigin::Pipe => Err(VolumeError::Pipe(path).into()),
        }
    }

    /// Shares a folder or file, once for all its places; yields its name.
    fn share(
        &mut self,
        volume: VolumeRequest,
        options: ExportOptions,
        destination: &Path,
        host: &dyn HostOps,
    ) -> Result<String, TaskError> {
        let mut known = self.shared.iter_mut();
        if let Some((_, folder)) = known.find(|(known, _)| *known == volume) {
            folder.options.writes = folder.options.writes.max(options.writes);
            return Ok(folder.name.clone());
        }
        let name = self.new_name(destination);
        let folder = SharedFolder {
            name: name.clone(),
            folder: host.open_volume(&volume)?,
            options,
        };
        self.shared.push((volume, folder));
        Ok(name)
    }

    fn memory(&self, origin: MemoryOrigin, destination: &Path) -> Content {
        let known = self
            .volumes
            .iter()
            .find_map(|volume| match &volume.content {
                Content::Memory {
                    origin: known,
                    name,
                } if known.device == origin.device => Some(name.clone()),
                _ => None,
            });
        let name = known.unwrap_or_else(|| self.new_name(destination));
        Content::Memory { origin, name }
    }

    /// A name for what is mounted at a path, which people find it by: `/etc/app` is `etc-app`.
    fn new_name(&self, destination: &Path) -> String {
        let base = name_of(destination);
        let is_taken = |name: &str| {
            let of_volume = |volume: &MachineVolume| match &volume.content {
                Content::Memory { name: taken, .. } => taken == name,
                Content::At(_) | Content::Mirror { .. } => false,
            };
            let mut shared = self.shared.iter();
            name == super::pet_plan::TREE
                || shared.any(|(_, folder)| folder.name == name)
                || self.volumes.iter().any(of_volume)
        };
        let mut name = base.clone();
        let mut number = 1;
        while is_taken(&name) {
            number += 1;
            name = format!("{base}-{number}");
        }
        name
    }
}

/// What a transcript is to say of the volumes: where they are, and how to get at those that are shared
/// by hand.
pub(super) fn note(volumes: &[MachineVolume]) -> Option<String> {
    let about = |volume: &MachineVolume| {
        let access = if volume.read_only { ", read-only" } else { "" };
        let shared = match &volume.content {
            Content::At(path) => path.strip_prefix(SHARED_DIR).ok(),
            Content::Mirror { shared, .. } => shared.strip_prefix(SHARED_DIR).ok(),
            Content::Memory { .. } => None,
        };
        let shared = shared.map(|path| format!(" ({}{access})", path.display()));
        format!("{}{}", volume.target, shared.unwrap_or_default())
    };
    let all: Vec<String> = volumes.iter().map(about).collect();
    (!all.is_empty()).then(|| {
        format!(
            "volumes, which our agent mounts once it runs in the machine: {}; without it, those with a \
             name are in: mount -t virtiofs {FS_TAG} /mnt",
            all.join(", ")
        )
    })
}

/// The container's bind mounts but those that a machine has of its own.
pub(super) fn bind_mounts(spec: &Spec) -> impl Iterator<Item = &Mount> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    mounts.iter().filter(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        volume::is_bind(mount.typ().as_deref(), options) && !is_own(mount)
    })
}

/// Whether a machine has what is mounted there of its own.
fn is_own(mount: &Mount) -> bool {
    let destination = mount.destination();
    let mut files = OWN_FILES.iter();
    let source = mount.source().as_deref();
    files.any(|own| Path::new(own) == destination)
        || source.is_some_and(|source| volume::is_pods_memory(source, destination))
}

/// A volume's place, if a machine can have one there.
fn place(destination: &Path) -> Result<String, TaskError> {
    let is = |folder: &&str| destination == Path::new(*folder);
    let is_below =
        |folder: &&str| destination.starts_with(*folder) && destination != Path::new(SHARED_MEMORY);
    if SYSTEM_FOLDERS.iter().any(is) || WHOLE_FOLDERS.iter().any(is_below) {
        return Err(VolumeError::SystemFolder.into());
    }
    let is_plain = |part: Component<'_>| !matches!(part, Component::ParentDir);
    let text = destination.to_str().filter(|text| text.starts_with('/'));
    let text = text.filter(|_| destination.components().all(is_plain));
    let wrong = || TaskError::Invalid("not an absolute path in UTF-8 without ..".to_owned());
    text.map(str::to_owned).ok_or_else(wrong)
}

fn name_of(destination: &Path) -> String {
    let text = destination.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = text
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .take(NAME_LEN_MAX)
        .collect();
    match name.trim_matches(['-', '.']) {
        "" => "volume".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
#[path = "pet_volumes_tests.rs"]
mod tests;
