//! What a machine is told of itself: the seed disk that cloud-init reads (its NoCloud data source),
//! and further small disks of files. Pure: typed data goes in, the bytes of a disk come out, the
//! same for the same data.
//!
//! Who wins, if the user's data and the pod say different things:
//!
//! * `user-data` goes over as it is. cloud-init merges it with `vendor-data` key by key and the
//!   user's keys win whole, lists included (`cloudinit/helpers.py`, `ConfigMerger`;
//!   `cloudinit/mergers/m_dict.py`, `no_replace`).
//! * The host name and the SSH keys are in `meta-data`, where the user's `hostname`, `fqdn` and
//!   `ssh_authorized_keys` still win or add (`cloudinit/util.py`, `get_hostname_fqdn`;
//!   `cloudinit/config/cc_ssh.py`).
//! * A user's own `meta-data` wins key by key, a user's own `network-config` as a whole.
//! * What must not get lost when the user has a `runcmd` or `write_files`, too, is no key of a
//!   cloud-config: see [`mod@vendor_data`].

pub mod disk;
mod environment;
mod meta_data;
pub mod network;
mod network_config;
mod resolv_conf;
mod shell;
mod user_data;
pub mod vendor_data;

use thiserror::Error;

pub use disk::{DiskError, DiskFile, Label, LabelError};
pub use meta_data::{Identity, MetaDataError, instance_id};
pub use network::{Nic, Resolver, Route};
pub use user_data::{UserData, UserDataError};
pub use vendor_data::Agent;

/// Name of the agent's program on the seed disk.
pub const AGENT_FILE: &str = "podvisor-agent";
/// The seed disk's label, by which cloud-init finds it (`DataSourceNoCloud.py`, `_get_devices`).
pub const SEED_LABEL: &str = "CIDATA";

/// All that a machine is told.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// Who it is.
    pub identity: Identity,
    /// What its user says.
    pub user: UserData,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// How it resolves names.
    pub resolver: Resolver,
    /// Variables of its container, for all that logs in.
    pub environment: Vec<(String, String)>,
    /// The agent that it is to run.
    pub agent: Option<Agent>,
}

/// Why there is no seed disk.
#[derive(Debug, Error)]
pub enum SeedError {
    /// The user's meta-data is no good.
    #[error(transparent)]
    MetaData(#[from] MetaDataError),
    /// The files do not make a disk.
    #[error("the seed disk")]
    Disk(#[from] DiskError),
    /// A document could not be written.
    #[error("cannot write {document}")]
    Document {
        /// Its name.
        document: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

impl Seed {
    /// The bytes of the seed disk.
    ///
    /// # Errors
    /// [`SeedError`].
    pub fn to_disk(&self) -> Result<Vec<u8>, SeedError> {
        let document = |document| move |source| SeedError::Document { document, source };
        let network_config = match &self.user.network_config {
            Some(own) => own.clone(),
            None => network_config::of(&self.nics, &self.resolver)
                .map_err(document("network-config"))?
                .into_bytes(),
        };
        let meta_data = meta_data::of(&self.identity, self.user.meta_data.as_deref())?;
        let vendor_data = vendor_data::of(&self.environment, &self.resolver, self.agent.as_ref());
        let vendor_data = vendor_data.map_err(document("vendor-data"))?;
        let mut files = vec![
            DiskFile::new("meta-data", meta_data.as_bytes()),
            DiskFile::new("user-data", &self.user.user_data),
            DiskFile::new("vendor-data", vendor_data.as_bytes()),
            DiskFile::new("network-config", &network_config),
        ];
        if let Some(agent) = &self.agent {
            files.push(DiskFile::new(AGENT_FILE, &agent.program));
        }
        Ok(disk::image(Label::SEED, &files)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::read_back;

    fn seed() -> Seed {
        Seed {
            identity: Identity {
                instance_id: instance_id("prod", "db-0", "disk-1"),
                hostname: "db-0.db.prod.svc.cluster.local".into(),
                ssh_keys: vec!["ssh-ed25519 AAAA a@b".into()],
            },
            user: UserData::inline("#!/bin/sh\necho hi\n").unwrap(),
            agent: Some(Agent {
                program: vec![0x7f; 3_000_000],
                start: "exec true".into(),
                wait: None,
            }),
            ..Seed::default()
        }
    }

    #[test]
    fn the_disk_holds_what_nocloud_looks_for() {
        let files = read_back(&seed().to_disk().unwrap());
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "meta-data",
                "network-config",
                "podvisor-agent",
                "user-data",
                "vendor-data"
            ]
        );
        assert_eq!(files["user-data"], b"#!/bin/sh\necho hi\n");
        assert_eq!(files["podvisor-agent"].len(), 3_000_000);
    }

    #[test]
    fn the_same_seed_is_the_same_disk() {
        assert!(seed().to_disk().unwrap() == seed().to_disk().unwrap());
    }

    #[test]
    fn a_users_own_network_config_goes_over_as_it_is() {
        let mut seed = seed();
        seed.user.network_config = Some(b"version: 1\n".to_vec());
        let files = read_back(&seed.to_disk().unwrap());
        assert_eq!(files["network-config"], b"version: 1\n");
    }
}
