//! PersistentVolumeClaims on this machine: files and folders that stay when their pod is gone.
//!
//! A claim is `/var/lib/podvisor/claims/NAMESPACE/NAME`, made when it is first used: a folder `data`,
//! or, as a block volume, a sparse file `disk.img` of the claim's size that becomes a loop device. A
//! path given on the command line takes its place: a folder, a file, or a block device.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

use super::loop_device::LoopDevice;
use crate::manifest::Manifest;
use crate::manifest::claim::{Claim, VolumeMode};
use crate::manifest::names::Name;
use crate::manifest::volume::ClaimVolume;

/// Where claims are that have no path of their own.
const CLAIMS: &str = "/var/lib/podvisor/claims";
/// A block volume's file.
const DISK: &str = "disk.img";
/// A volume's folder.
const DATA: &str = "data";

/// A claim's place, as the command line has it: `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    pub name: Name,
    pub path: PathBuf,
}

impl FromStr for ClaimPath {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, path) = text
            .split_once('=')
            .filter(|(_, path)| !path.is_empty())
            .with_context(|| format!("{text:?} is not NAME=PATH"))?;
        Ok(Self {
            name: Name::try_from(name.to_owned())?,
            path: path.into(),
        })
    }
}

/// The claims of one pod. Their files are locked, and their loop devices there, as long as this is.
#[derive(Debug, Default)]
pub struct Claims {
    given: BTreeMap<Name, PathBuf>,
    made: BTreeMap<Name, PathBuf>,
    locks: Vec<File>,
    devices: Vec<LoopDevice>,
}

impl Claims {
    /// Claims whose places may be `given`.
    pub fn new(given: &[ClaimPath]) -> Self {
        let given = given.iter();
        Self {
            given: given
                .map(|claim| (claim.name.clone(), claim.path.clone()))
                .collect(),
            ..Self::default()
        }
    }

    /// Makes what `volume`, called `name` in the pod, needs; answers its folder or its device.
    pub fn prepare(
        &mut self,
        name: &Name,
        volume: &ClaimVolume,
        manifest: &Manifest,
    ) -> Result<PathBuf> {
        let claim_name = &volume.claim_name;
        if let Some(path) = self.made.get(claim_name) {
            return Ok(path.clone());
        }
        let claim = manifest.objects.claims.get(claim_name);
        let mode = mode(name, claim, manifest)?;
        let place = match self.given.get(claim_name) {
            Some(path) => path.clone(),
            None if claim.is_none() && !own_place(manifest, claim_name, mode).exists() => bail!(
                "claim {claim_name} is neither in the manifest nor there from an earlier run; \
                 name its place with --claim {claim_name}=PATH"
            ),
            None => make(&own_place(manifest, claim_name, mode), mode, claim)?,
        };
        let path = match mode {
            VolumeMode::Filesystem => self.folder(&place),
            VolumeMode::Block => self.device(&place, volume.read_only),
        };
        let path = path.with_context(|| format!("claim {claim_name}"))?;
        self.made.insert(claim_name.clone(), path.clone());
        Ok(path)
    }

    fn folder(&mut self, place: &Path) -> Result<PathBuf> {
        let folder = File::open(place).with_context(|| format!("{}", place.display()))?;
        if !folder.metadata()?.is_dir() {
            bail!("{} is not a folder", place.display());
        }
        self.lock(folder, place)?;
        Ok(place.canonicalize()?)
    }

    fn device(&mut self, place: &Path, read_only: bool) -> Result<PathBuf> {
        let file = OpenOptions::new().read(true).write(!read_only).open(place);
        let file = file.with_context(|| format!("{}", place.display()))?;
        let kind = file.metadata()?.file_type();
        if kind.is_block_device() {
            return Ok(place.canonicalize()?);
        }
        if !kind.is_file() {
            bail!("{} is neither a file nor a block device", place.display());
        }
        let device = LoopDevice::attach(&file, read_only);
        let device = device.with_context(|| format!("loop device of {}", place.display()))?;
        let path = device.path().to_owned();
        self.lock(file, place)?;
        self.devices.push(device);
        Ok(path)
    }

    /// Two machines on one disk would destroy what is on it.
    fn lock(&mut self, file: File, place: &Path) -> Result<()> {
        match file.try_lock() {
            Ok(()) => self.locks.push(file),
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use by another podvisor run", place.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", place.display()));
            }
        }
        Ok(())
    }
}

/// What a volume is: what its claim says, and if there is no claim, what its use says.
fn mode(name: &Name, claim: Option<&Claim>, manifest: &Manifest) -> Result<VolumeMode> {
    let spec = &manifest.pod.spec;
    let containers = || spec.init_containers.iter().chain(&spec.containers);
    let is_device = containers().any(|container| {
        let mut devices = container.volume_devices.iter();
        devices.any(|device| device.name == *name)
    });
    let is_mounted = containers().any(|container| {
        let mut mounts = container.volume_mounts.iter();
        mounts.any(|mount| mount.name == *name)
    });
    let claimed = claim.map(|claim| claim.volume_mode);
    match (is_device, is_mounted, claimed) {
        (true, true, _) => bail!("is both in volumeDevices and in volumeMounts"),
        (true, false, Some(VolumeMode::Filesystem)) => {
            bail!("is in volumeDevices, but its claim's volumeMode is Filesystem")
        }
        (false, true, Some(VolumeMode::Block)) => {
            bail!("is in volumeMounts, but its claim's volumeMode is Block")
        }
        (true, false, _) => Ok(VolumeMode::Block),
        (false, true, _) => Ok(VolumeMode::Filesystem),
        (false, false, claimed) => Ok(claimed.unwrap_or_default()),
    }
}

fn own_place(manifest: &Manifest, claim: &Name, mode: VolumeMode) -> PathBuf {
    let file = match mode {
        VolumeMode::Filesystem => DATA,
        VolumeMode::Block => DISK,
    };
    Path::new(CLAIMS)
        .join(manifest.pod.metadata.namespace())
        .join(claim.as_str())
        .join(file)
}

/// Makes a claim's file or folder unless it is there. A file that is smaller than claimed grows.
fn make(place: &Path, mode: VolumeMode, claim: Option<&Claim>) -> Result<PathBuf> {
    let folder = match mode {
        VolumeMode::Filesystem => place,
        VolumeMode::Block => place.parent().unwrap_or(place),
    };
    let made = DirBuilder::new().recursive(true).mode(0o750).create(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    if mode == VolumeMode::Block {
        make_disk(place, claim)?;
    }
    Ok(place.to_owned())
}

fn make_disk(place: &Path, claim: Option<&Claim>) -> Result<()> {
    let wanted = claim.and_then(Claim::bytes);
    let there = fs::metadata(place).map(|metadata| metadata.len()).ok();
    let len = match (there, wanted) {
        (Some(there), Some(wanted)) if there < wanted => wanted,
        (Some(_), _) => return Ok(()),
        (None, Some(wanted)) => wanted,
        (None, None) => {
            return Err(anyhow!(
                "a block volume's claim needs resources.requests.storage"
            ));
        }
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(place);
    let file = file.with_context(|| format!("cannot make {}", place.display()))?;
    file.set_len(len)
        .with_context(|| format!("cannot give {} {len} bytes", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(mount: &str, claim: &str) -> Manifest {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: pet}}\nspec:\n  containers:\n  - {{name: a, \
             image: i{mount}}}\n  volumes: [{{name: disk, persistentVolumeClaim: {{claimName: c}}}}]\n{claim}"
        );
        Manifest::parse(&text).unwrap()
    }

    fn prepare(manifest: &Manifest, given: &[ClaimPath]) -> Result<PathBuf> {
        let volume = &manifest.pod.spec.volumes[0];
        let claim = volume.persistent_volume_claim.as_ref().unwrap();
        Claims::new(given).prepare(&volume.name, claim, manifest)
    }

    const DEVICE: &str = ", volumeDevices: [{name: disk, devicePath: /}]";
    const MOUNT: &str = ", volumeMounts: [{name: disk, mountPath: /data}]";
    const BLOCK: &str = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {volumeMode: Block, resources: {requests: {storage: 1Mi}}}\n";

    #[test]
    fn a_place_is_a_name_and_a_path() {
        let given: ClaimPath = "disk=/dev/sdb".parse().unwrap();
        assert_eq!(
            (given.name.as_str(), given.path),
            ("disk", "/dev/sdb".into())
        );
        for wrong in ["disk", "disk=", "=/dev/sdb", "a/b=/x"] {
            assert!(wrong.parse::<ClaimPath>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_volume_is_used_as_it_is_claimed() {
        let name = |manifest: &Manifest| manifest.pod.spec.volumes[0].name.clone();
        for (mount, claim, expected) in [
            (DEVICE, BLOCK, Ok(VolumeMode::Block)),
            (DEVICE, "", Ok(VolumeMode::Block)),
            (MOUNT, "", Ok(VolumeMode::Filesystem)),
            ("", BLOCK, Ok(VolumeMode::Block)),
            (MOUNT, BLOCK, Err("volumeMode is Block")),
            (&*format!("{DEVICE}{MOUNT}"), "", Err("both")),
        ] {
            let manifest = manifest(mount, claim);
            let claims = manifest.objects.claims.values().next();
            match (mode(&name(&manifest), claims, &manifest), expected) {
                (Ok(mode), Ok(expected)) => assert_eq!(mode, expected),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (other, _) => panic!("{mount}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_disk_is_made_once_and_grows() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("ns/c").join(DISK);
        let claim = manifest(DEVICE, BLOCK).objects.claims.into_values().next();
        make(&place, VolumeMode::Block, claim.as_ref()).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().len(), 1 << 20);
        fs::write(&place, "kept").unwrap();
        make(&place, VolumeMode::Block, claim.as_ref()).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().len(), 1 << 20);
        assert!(fs::read(&place).unwrap().starts_with(b"kept"));
        fs::File::create(&place).unwrap().set_len(2 << 20).unwrap();
        make(&place, VolumeMode::Block, None).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().len(), 2 << 20);
        fs::remove_file(&place).unwrap();
        let error = make(&place, VolumeMode::Block, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("requests.storage"), "{error}");
    }

    #[test]
    fn a_given_folder_is_taken_by_one_pod_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let given = [ClaimPath {
            name: Name::try_from("c".to_owned()).unwrap(),
            path: path.clone(),
        }];
        let manifest = manifest(MOUNT, "");
        let volume = &manifest.pod.spec.volumes[0];
        let claim = volume.persistent_volume_claim.as_ref().unwrap();
        let mut first = Claims::new(&given);
        assert_eq!(first.prepare(&volume.name, claim, &manifest).unwrap(), path);
        // Another volume of the same claim is the same folder.
        assert_eq!(first.prepare(&volume.name, claim, &manifest).unwrap(), path);
        let error = format!("{:#}", prepare(&manifest, &given).unwrap_err());
        assert!(error.contains("in use by another"), "{error}");
        drop(first);
        prepare(&manifest, &given).unwrap();
    }

    #[test]
    fn a_claim_that_nobody_made_is_refused() {
        let error = prepare(&manifest(DEVICE, ""), &[]).unwrap_err().to_string();
        assert!(error.contains("--claim c=PATH"), "{error}");
    }
}
