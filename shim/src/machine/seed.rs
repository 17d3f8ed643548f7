//! What a machine is told of itself by the disk that cloud-init reads: its pod's names, network and
//! volumes, its user's data, and our agent.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use podvisor_annotations::value::cloud_init::CloudInit;
use podvisor_proto::machine;
use podvisor_seed::{Agent, Identity, Nic, Resolver, Seed, SeedError, UserData, UserDataError};
use thiserror::Error;

use super::image::entries;

/// Longest document of a user that is read, in bytes; the seed has a limit of its own below it.
const DOCUMENT_LEN_MAX: u64 = 4 << 20;

/// What is known of a seed before the network is.
#[derive(Clone, Debug, Default)]
pub struct SeedPlan {
    /// The pod's namespace and name.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Keys that log in.
    pub ssh_keys: Vec<String>,
    /// What its user says.
    pub user: UserData,
    /// The resolver's configuration.
    pub resolv_conf: String,
    /// Variables of its container.
    pub environment: Vec<(String, String)>,
    /// Whether it has volumes, which the agent mounts.
    pub has_volumes: bool,
    /// Our agent's program.
    pub agent: PathBuf,
}

/// Why there is no seed.
#[derive(Debug, Error)]
pub enum SeedPlanError {
    /// The user's data cannot be used.
    #[error("podvisor.io/cloud-init")]
    User(#[from] UserDataError),
    /// Nothing is mounted where the user's data are to be.
    #[error("podvisor.io/cloud-init: no volume of the container is mounted at {0}")]
    NoVolume(String),
    /// A document of the user's cannot be read.
    #[error("podvisor.io/cloud-init: cannot read {path}")]
    Read {
        /// The document.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The program is missing.
    #[error("cannot read {path}")]
    Agent {
        /// The program.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// There is no such disk.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The host has no room for it.
    #[error("cannot keep the seed disk in memory")]
    Memory(#[source] io::Error),
}

/// What a pod's user says, by the annotation; `volumes` tells where the host has what is mounted at a
/// path of the container.
///
/// # Errors
/// [`SeedPlanError`].
pub fn user_data(
    given: Option<&CloudInit>,
    volumes: impl Fn(&str) -> Option<PathBuf>,
) -> Result<UserData, SeedPlanError> {
    match given {
        None => Ok(UserData::default()),
        Some(CloudInit::UserData(text)) => Ok(UserData::inline(text)?),
        Some(CloudInit::Volume(path)) => {
            let folder =
                volumes(path.as_str()).ok_or_else(|| SeedPlanError::NoVolume(path.to_string()))?;
            let files = read_folder(&folder)?;
            let named = files
                .iter()
                .map(|(name, content)| (name.as_str(), content.as_slice()));
            Ok(UserData::from_files(named.collect::<Vec<_>>())?)
        }
    }
}

/// The files of a volume; those of a Secret are links to its `..data`. None leads out of it.
fn read_folder(folder: &Path) -> Result<Vec<(String, Vec<u8>)>, SeedPlanError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SeedPlanError::Read { path, source }
    };
    let root = open(folder, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let root = root.map_err(|errno| failed(folder)(errno.into()))?;
    let mut files = Vec::new();
    for name in entries(folder, ".") {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = folder.join(&name);
        let file = openat2(&root, name.as_str(), how);
        let file = File::from(file.map_err(|errno| failed(&path)(errno.into()))?);
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, DOCUMENT_LEN_MAX), &mut content)
            .map_err(failed(&path))?;
        files.push((name, content));
    }
    Ok(files)
}

impl SeedPlan {
    /// The seed disk of a machine with these cards whose disk is the one called `disk`.
    ///
    /// # Errors
    /// [`SeedPlanError`].
    pub fn disk(self, nics: Vec<Nic>, disk: &str) -> Result<(File, u64), SeedPlanError> {
        let program = std::fs::read(&self.agent).map_err(|source| SeedPlanError::Agent {
            path: self.agent.clone(),
            source,
        })?;
        let seed = Seed {
            identity: Identity {
                instance_id: podvisor_seed::instance_id(&self.namespace, &self.name, disk),
                hostname: self.hostname,
                ssh_keys: self.ssh_keys,
            },
            user: self.user,
            nics,
            resolver: Resolver::parse(&self.resolv_conf),
            environment: self.environment,
            agent: Some(Agent {
                program,
                start: machine::start_commands(),
                wait: self.has_volumes.then(machine::wait_commands),
            }),
        };
        let content = seed.to_disk()?;
        let file = in_memory(c"seed", &content).map_err(SeedPlanError::Memory)?;
        Ok((file, content.len() as u64))
    }
}

/// A file of the process's own memory, positioned at its begin.
///
/// # Errors
/// What the host says.
pub fn in_memory(name: &CStr, content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}
