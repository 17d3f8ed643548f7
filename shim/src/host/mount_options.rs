//! Mount options in the notation of fstab, as snapshotters write them.

use nix::mount::MsFlags;
use thiserror::Error;

use crate::pod::users::UserMaps;

/// An option that cannot be honoured.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// It would take a loop device.
    #[error("option \"loop\": file systems in files cannot be mounted yet")]
    Loop,
    /// It says of no owner who it is to be.
    #[error("options uidmap={users} and gidmap={groups} do not say who owns the files")]
    Owners {
        /// The value of `uidmap`.
        users: String,
        /// The value of `gidmap`.
        groups: String,
    },
}

/// Flags and data of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountOptions {
    pub(super) flags: MsFlags,
    pub(super) data: Vec<String>,
    /// The owners of the files of an overlay's lower layers, where they are others than their file
    /// systems say: `uidmap` and `gidmap`, as containerd's snapshotters write them for pods with
    /// users of their own (containerd, `core/mount/mount_linux.go`).
    pub(super) owners: Option<UserMaps>,
}

impl MountOptions {
    /// Parses options; what is no flag is data for the file system.
    pub(super) fn parse(options: &[String]) -> Result<Self, OptionError> {
        let mut parsed = Self {
            flags: MsFlags::empty(),
            data: Vec::new(),
            owners: None,
        };
        let (mut users, mut groups) = ("", "");
        for option in options {
            if let Some(value) = option.strip_prefix("uidmap=") {
                users = value;
                continue;
            }
            if let Some(value) = option.strip_prefix("gidmap=") {
                groups = value;
                continue;
            }
            match flag(option) {
                Some((flag, true)) => parsed.flags |= flag,
                Some((flag, false)) => parsed.flags &= !flag,
                None if option == "loop" => return Err(OptionError::Loop),
                None if option == "defaults" || option.starts_with("X-containerd.") => {}
                None => parsed.data.push(option.clone()),
            }
        }
        if !users.is_empty() || !groups.is_empty() {
            let owners = UserMaps::of_options(users, groups);
            parsed.owners = Some(owners.ok_or_else(|| OptionError::Owners {
                users: users.to_owned(),
                groups: groups.to_owned(),
            })?);
        }
        Ok(parsed)
    }
}

/// The flag of an option, and whether the option sets it (mount(8)).
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<MountOptions, OptionError> {
        let options: Vec<String> = line.split(' ').map(str::to_owned).collect();
        MountOptions::parse(&options)
    }

    #[test]
    fn flags_are_told_from_data() {
        let parsed = parse("ro nodev index=off lowerdir=/a:/b").unwrap();
        assert_eq!(parsed.flags, MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
        assert_eq!(parsed.data, ["index=off", "lowerdir=/a:/b"]);
        assert_eq!(parse("ro rw").unwrap().flags, MsFlags::empty());
    }

    #[test]
    fn owners_are_told_from_data() {
        let parsed = parse("uidmap=0:1000:10 lowerdir=/a gidmap=0:2000:10").unwrap();
        assert_eq!(
            parsed.owners,
            UserMaps::of_options("0:1000:10", "0:2000:10")
        );
        assert_eq!(parsed.data, ["lowerdir=/a"]);
        assert!(matches!(
            parse("uidmap=0:1000:10"),
            Err(OptionError::Owners { .. })
        ));
    }

    #[test]
    fn a_loop_device_is_refused() {
        assert_eq!(parse("loop ro"), Err(OptionError::Loop));
    }
}
