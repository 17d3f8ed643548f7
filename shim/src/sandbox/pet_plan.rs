//! From a pod's and its container's spec to a plan for a machine that boots its own disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use podvisor_annotations::Annotations;
use podvisor_annotations::value::disk::Disk;
use podvisor_annotations::value::guest::{ConsoleKind, PowerAction};
use podvisor_devices::fs::{CachePolicy, ExportOptions, Writes};
use podvisor_proto::agent::v1::BootMachineRequest;
use podvisor_seed::Nic as SeedNic;
use podvisor_vmm::ResetPolicy;

use super::error::TaskError;
use super::pet_disks::{boot_sources, options, queues};
use super::pet_file_disk;
use super::pet_network::CardsPlan;
use super::pet_volumes::{self, MachineVolume, VolumePlan};
use super::plan::{PodPlan, kernel_args};
use crate::guest::pet::BootStage;
use crate::guest::pet_disk::{DiskOptions, PetDisk};
use crate::guest::{MachinePlan, PetParts, SharedFolder};
use crate::host::{DiskRequest, HostOps};
use crate::machine::disks::{
    BOOT_SERIAL, BootDisk, DiskSet, DisksError, OpenDisks, layer_folder, open_for_reading,
};
use crate::machine::identity::Identity;
use crate::machine::seed::{SeedPlan, user_data};
use crate::machine::source::{DISK_FOLDER, Kind, Source, Volume};
use crate::machine::store::{self, Found, Origin};
use crate::pod::hardware;
use crate::pod::network::PodNetwork;
use crate::pod::resources::Share;
use crate::pod::room::Room;
use crate::pod::{Bundle, block_devices};

/// The export that a machine without a disk has its root on.
pub(super) const TREE: &str = "root";
/// The seed disk's serial number.
pub(super) const SEED_SERIAL: &str = "podvisor-seed";
/// Has a kernel speak to the first virtio console.
const VIRTIO_CONSOLE: &str = "console=hvc0";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where CRI tells an image's name, and who the pod is.
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";

/// A machine to be started.
pub(super) struct PetPlan {
    /// Its disks.
    pub disks: DiskSet,
    /// The pod's network.
    pub network: PodNetwork,
    /// What its cards are to be.
    pub cards: CardsPlan,
    /// How it boots.
    pub stage: BootStage,
    /// What it consists of beside disks and cards.
    pub machine: MachinePlan,
    /// Its pod's volumes.
    pub volumes: Vec<MachineVolume>,
    /// What it is told of itself.
    pub seed: SeedPlan,
    /// What its transcript is to begin with.
    pub notes: Vec<String>,
    /// Who it is.
    pub identity: Identity,
    /// What it is given of the pod.
    pub share: Share,
}

/// What is looked at to make a plan.
struct Input<'a> {
    pod: &'a PodPlan,
    spec: &'a Spec,
    root: &'a Path,
    host: &'a dyn HostOps,
    /// Queues of a disk of which the pod says nothing else.
    queues: u16,
}

impl PetPlan {
    /// The plan for the container of `bundle`, whose root file system is at `root`. Blocks.
    ///
    /// # Errors
    /// [`TaskError`] for what it cannot have.
    pub fn of(
        pod: &PodPlan,
        bundle: &Bundle,
        root: &Path,
        host: &dyn HostOps,
    ) -> Result<Self, TaskError> {
        let spec = &bundle.spec;
        let source = Source::find(spec, root, Kind::Machine)?;
        let source = source.ok_or(TaskError::IsMachine)?;
        let input = Input {
            pod,
            spec,
            root,
            host,
            queues: queues(pod.room(true)?.booted.vcpus),
        };
        let identity = identity(pod);
        let mut notes = Vec::new();
        let is_tree = source == Source::Tree;
        let boot_path = boot_path(&source);
        let mut elsewhere = Vec::from_iter(boot_folder(&source));
        let mut disks = DiskSet {
            boot: input.boot_disk(source, bundle, &mut notes)?,
            others: input.other_disks()?,
        };
        let annotated = pod.annotations.disks.as_slice();
        let files = pet_file_disk::add(&mut disks, annotated, spec, boot_path, input.queues)?;
        elsewhere.extend(files);
        let (mut shares, volumes) = VolumePlan::of(spec, host, &elsewhere)?.into_parts();
        notes.extend(pet_volumes::note(&volumes));
        if is_tree {
            shares.push(input.tree()?);
        }
        let order = pod.annotations.boot_order.as_slice();
        let share = bundle.share()?;
        let machine = input.machine(&identity, shares, &share)?;
        Ok(Self {
            network: pod.network.clone(),
            cards: CardsPlan::of(&pod.annotations.nics, &pod.network)?,
            stage: BootStage {
                request: BootMachineRequest {
                    sources: boot_sources(&disks, order, boot_path, is_tree)?,
                    kernel_args: machine_args(&pod.annotations, machine.room),
                    ..BootMachineRequest::default()
                },
                boot_timeout: pod.config.boot_timeout,
                agent_timeout: pod.config.agent_timeout,
            },
            disks,
            machine,
            seed: input.seed(&identity, !volumes.is_empty())?,
            volumes,
            notes,
            identity,
            share,
        })
    }
}

/// Further words for the machine's kernel. A system that is not made for us speaks to its serial port at
/// most.
fn machine_args(annotations: &Annotations, room: Room) -> Vec<String> {
    let mut words = kernel_args(annotations, room);
    let is_virtio = annotations.console == Some(ConsoleKind::Virtio);
    if is_virtio && !words.iter().any(|word| word == VIRTIO_CONSOLE) {
        words.push(VIRTIO_CONSOLE.to_owned());
    }
    words
}

fn policy(action: PowerAction) -> ResetPolicy {
    match action {
        PowerAction::Restart => ResetPolicy::Restart,
        PowerAction::Stop => ResetPolicy::End,
    }
}

fn identity(pod: &PodPlan) -> Identity {
    let annotation = |key: &str| {
        let all = pod.bundle.spec.annotations().as_ref();
        all.and_then(|all| all.get(key)).cloned()
    };
    Identity {
        namespace: annotation(POD_NAMESPACE).unwrap_or_default(),
        name: annotation(POD_NAME).unwrap_or_else(|| pod.id.clone()),
    }
}

/// Where the container sees what it boots; None for what is not a volume.
fn boot_path(source: &Source) -> Option<&'static str> {
    match source {
        Source::Volume(Volume::Block(_), _) => Some("/"),
        Source::Volume(Volume::Folder { .. }, _) | Source::Image(_) => Some(DISK_FOLDER),
        Source::Tree => None,
    }
}

/// The folder that holds the machine's disk, where the container would see it.
fn boot_folder(source: &Source) -> Option<&'static Path> {
    let is_folder = matches!(source, Source::Volume(Volume::Folder { .. }, _));
    is_folder.then_some(Path::new(DISK_FOLDER))
}

impl Input<'_> {
    /// What the machine consists of beside disks and cards.
    fn machine(
        &self,
        identity: &Identity,
        shares: Vec<SharedFolder>,
        share: &Share,
    ) -> Result<MachinePlan, TaskError> {
        let pod = self.pod;
        let annotations = &pod.annotations;
        let pet = PetParts {
            disks: Vec::new(),
            shares,
            on_reset: policy(annotations.on_reboot.unwrap_or(PowerAction::Restart)),
            on_poweroff: policy(annotations.on_poweroff.unwrap_or(PowerAction::Stop)),
            generation: 0,
            watchdog: annotations
                .watchdog
                .map(|limit| Duration::from_secs(limit.get().into())),
        };
        let room = pod.room(true)?;
        let mut processors = hardware::processors(annotations, room)?;
        let binding = pod.bind(&mut processors, room, share.host_cpus.as_ref())?;
        binding.check([share], room.booted.vcpus)?;
        let serial = identity.serial();
        let smbios = hardware::smbios(&annotations.smbios, identity.uuid(), &serial)?;
        let transparent = pod.config.transparent_huge_pages;
        Ok(MachinePlan {
            room,
            binding,
            processors,
            memory_backing: hardware::memory_backing(annotations, transparent),
            smbios: Some(smbios),
            extras: hardware::extras(annotations),
            kernel: pod.config.kernel(&pod.release),
            initrd: pod.release.machine_initrd(),
            kernel_args: Vec::new(),
            cards: Vec::new(),
            pet: Some(pet),
        })
    }

    fn boot_disk(
        &self,
        source: Source,
        bundle: &Bundle,
        notes: &mut Vec<String>,
    ) -> Result<Option<(BootDisk, DiskOptions)>, TaskError> {
        let path = boot_path(&source).unwrap_or_default();
        let annotated = self.annotated(path).or_else(|| self.annotated("/"));
        let options = options(annotated, BOOT_SERIAL, self.queues);
        let boot = match source {
            Source::Tree => return Ok(None),
            Source::Image(image) => {
                // Whether it is a disk shows now, when somebody waits for the answer.
                open_for_reading(&image)?;
                BootDisk::Image(image, layer_folder(&bundle.path))
            }
            Source::Volume(volume, image) => {
                let origin = image.as_ref().map(|image| {
                    let name = self.annotation(IMAGE_NAME).unwrap_or_default();
                    Origin::of(name, &image.name, &image.file)
                });
                let origin = origin.transpose().map_err(TaskError::Origin)?;
                match (store::open(self.host, &volume, origin.clone())?, image) {
                    (Found::Disk(stored), _) => {
                        let filled_from = stored.record.as_ref().map(|record| &record.origin);
                        if let (Some(before), Some(now)) = (filled_from, &origin)
                            && before.differs(now)
                        {
                            notes.push(format!(
                                "the image's disk {} is not the one that this volume was filled from ({} of {}): \
                                 the volume stays as it is",
                                now.file, before.file, before.image
                            ));
                        }
                        BootDisk::Volume(stored)
                    }
                    (Found::Empty(fill), Some(image)) => {
                        open_for_reading(&image)?;
                        BootDisk::Fill(fill, image)
                    }
                    // Only an origin makes a volume one to fill.
                    (Found::Empty(_), None) => return Err(TaskError::Gone),
                }
            }
        };
        Ok(Some((boot, options)))
    }

    /// The container's other block devices.
    fn other_disks(&self) -> Result<Vec<(store::StoredDisk, DiskOptions)>, TaskError> {
        let Some(linux) = self.spec.linux() else {
            return Ok(Vec::new());
        };
        let devices = linux.devices().as_deref().unwrap_or_default();
        let mut disks = Vec::new();
        for block in block_devices::of(linux) {
            let Some(device) = devices.get(block.index) else {
                continue;
            };
            let path = device.path().display().to_string();
            if path == "/" {
                continue;
            }
            let serial = format!("disk{}", disks.len());
            let mut options = options(self.annotated(&path), &serial, self.queues);
            options.path = path;
            disks.push((self.stored(block.disk)?, options));
        }
        Ok(disks)
    }

    fn stored(&self, disk: DiskRequest) -> Result<store::StoredDisk, TaskError> {
        let file = self.host.open_disk(&disk)?;
        Ok(store::whole_device(file, disk.read_only)?)
    }

    /// What the pod says of a disk.
    fn annotated(&self, path: &str) -> Option<&Disk> {
        let disks = &self.pod.annotations.disks;
        disks.iter().find(|disk| disk.path.as_str() == path)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        let all = self.spec.annotations().as_ref()?;
        all.get(key).map(String::as_str)
    }

    /// The root of a machine that has no disk, in the shared file system.
    fn tree(&self) -> Result<SharedFolder, TaskError> {
        Ok(SharedFolder {
            name: TREE.to_owned(),
            folder: self.host.open_path(self.root)?,
            options: ExportOptions {
                writes: Writes::Everything,
                cache: CachePolicy::Always,
            },
        })
    }

    /// Where the host has what the container would see at `path`.
    fn source_of(&self, path: &str) -> Option<PathBuf> {
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        let mount = mounts
            .iter()
            .find(|mount| mount.destination() == Path::new(path))?;
        mount.source().clone()
    }

    fn seed(&self, identity: &Identity, has_volumes: bool) -> Result<SeedPlan, TaskError> {
        let annotations = &self.pod.annotations;
        let process = self.spec.process().as_ref();
        let environment = process.and_then(|process| process.env().clone());
        let resolv_conf = self.source_of(RESOLV_CONF);
        let resolv_conf = resolv_conf.and_then(|path| std::fs::read_to_string(path).ok());
        Ok(SeedPlan {
            namespace: identity.namespace.clone(),
            name: identity.name.clone(),
            hostname: self.pod.hostname(),
            ssh_keys: annotations
                .ssh_keys
                .iter()
                .map(ToString::to_string)
                .collect(),
            user: user_data(annotations.cloud_init.as_ref(), |path| self.source_of(path))?,
            resolv_conf: resolv_conf.unwrap_or_default(),
            environment: environment
                .unwrap_or_default()
                .iter()
                .filter_map(|entry| {
                    let (name, value) = entry.split_once('=')?;
                    Some((name.to_owned(), value.to_owned()))
                })
                .collect(),
            has_volumes,
            agent: self.pod.release.agent(),
        })
    }
}

/// Completes a machine whose disks are open and whose network is known.
///
/// # Errors
/// [`TaskError`] when there is no seed disk.
pub(super) fn complete(
    mut machine: MachinePlan,
    opened: OpenDisks,
    seed: SeedPlan,
    identity: &Identity,
    nics: Vec<SeedNic>,
) -> Result<MachinePlan, TaskError> {
    let OpenDisks {
        mut disks,
        generation,
    } = opened;
    let generation = generation.unwrap_or_else(|| identity.generation());
    let (seed, len) = seed.disk(nics, &format!("{generation:032x}"))?;
    let options = DiskOptions {
        serial: SEED_SERIAL.to_owned(),
        read_only: true,
        queues: 1,
        ..DiskOptions::default()
    };
    let seed = PetDisk::of_file(seed, len, options).map_err(|source| DisksError::Image {
        what: "the seed disk".to_owned(),
        source,
    })?;
    disks.push(seed);
    if let Some(pet) = &mut machine.pet {
        pet.disks = disks;
        pet.generation = generation;
    }
    Ok(machine)
}
