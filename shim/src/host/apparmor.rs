//! AppArmor profiles of the host's kernel, as it was given them: compiled policy that another
//! kernel can load (Linux, security/apparmor/apparmorfs.c, `raw_data`).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use thiserror::Error;

/// Where the kernel tells of its profiles: a folder for each.
const PROFILES: &str = "/sys/kernel/security/apparmor/policy/profiles";
/// Most of a policy, in bytes: it travels in one message to the guest. Those of whole
/// distributions have less.
const MAX_POLICY: u64 = 1 << 20;

/// Why a profile cannot be had.
#[derive(Debug, Error)]
pub enum ApparmorError {
    /// The kernel has no profiles.
    #[error("cannot list the node's AppArmor profiles in search of {profile}")]
    List {
        /// The profile.
        profile: String,
        /// What the host said.
        source: io::Error,
    },
    /// It has no such profile.
    #[error("AppArmor profile {0} is not loaded on the node")]
    NotLoaded(String),
    /// It does not tell what it was given.
    #[error(
        "AppArmor profile {profile} cannot be taken over into the VM: the node's kernel does not \
         tell it (CONFIG_SECURITY_APPARMOR_EXPORT_BINARY)"
    )]
    Read {
        /// The profile.
        profile: String,
        /// What the host said.
        source: io::Error,
    },
    /// The policy is too large.
    #[error("AppArmor profile {0} has more than {limit} bytes", limit = MAX_POLICY)]
    TooLarge(String),
}

/// The compiled policy that `profile` came in; other profiles may have come with it.
///
/// # Errors
/// [`ApparmorError`].
pub(super) fn policy(profile: &str) -> Result<Vec<u8>, ApparmorError> {
    policy_in(Path::new(PROFILES), profile)
}

fn policy_in(profiles: &Path, profile: &str) -> Result<Vec<u8>, ApparmorError> {
    let entries = fs::read_dir(profiles).map_err(|source| ApparmorError::List {
        profile: profile.to_owned(),
        source,
    })?;
    // A folder's own name is made of the profile's, but not all of a name fits there.
    let is_named = |folder: &Path| {
        fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim_end() == profile)
    };
    let folder = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|folder| is_named(folder))
        .ok_or_else(|| ApparmorError::NotLoaded(profile.to_owned()))?;
    let mut policy = Vec::new();
    File::open(folder.join("raw_data"))
        .and_then(|file| file.take(MAX_POLICY + 1).read_to_end(&mut policy))
        .map_err(|source| ApparmorError::Read {
            profile: profile.to_owned(),
            source,
        })?;
    if u64::try_from(policy.len()).is_ok_and(|len| len <= MAX_POLICY) {
        Ok(policy)
    } else {
        Err(ApparmorError::TooLarge(profile.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(folder: &Path, number: u32, name: &str, policy: Option<&[u8]>) {
        let folder = folder.join(format!("mangled.{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        if let Some(policy) = policy {
            fs::write(folder.join("raw_data"), policy).unwrap();
        }
    }

    #[test]
    fn a_profile_is_found_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        profile(folder.path(), 1, "mine-too", Some(b"other"));
        profile(folder.path(), 2, "mine", Some(b"policy"));
        assert_eq!(policy_in(folder.path(), "mine").unwrap(), b"policy");
    }

    #[test]
    fn what_is_missing_is_told_with_the_profile() {
        let folder = tempfile::tempdir().unwrap();
        profile(folder.path(), 1, "silent", None);
        let too_large = vec![0; usize::try_from(MAX_POLICY).unwrap() + 1];
        profile(folder.path(), 2, "large", Some(&too_large));
        for (name, why) in [
            ("none", "not loaded"),
            ("silent", "EXPORT_BINARY"),
            ("large", "bytes"),
        ] {
            let error = policy_in(folder.path(), name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(why), "{error}");
        }
        let error = policy_in(&folder.path().join("none"), "mine").unwrap_err();
        assert!(matches!(error, ApparmorError::List { .. }));
    }
}
