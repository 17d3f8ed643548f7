//! The pod's volumes in a machine's tree.

use crate::shell;

/// Where the pod's shared folder is mounted.
const SHARE: &str = "/run/podvisor/share";

/// A volume and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMount {
    /// What it is.
    pub source: MountSource,
    /// Where it is to be: an absolute path.
    pub target: String,
    /// Whether it is only read.
    pub read_only: bool,
}

/// What a volume is in the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A folder or file of the virtio-fs with this tag.
    Share {
        /// The tag.
        tag: String,
        /// The path below its root.
        below: String,
    },
    /// A disk that [`crate::disk::image`] has made.
    Disk {
        /// Its label.
        label: String,
        /// Mode of its files, such as 0o400; folders can be searched by those who can read.
        mode: u32,
        /// Group of its files.
        gid: u32,
    },
}

/// Commands that mount the volumes. One that cannot be mounted leaves the others alone.
pub fn commands(mounts: &[GuestMount]) -> String {
    mounts.iter().map(command).collect()
}

fn command(mount: &GuestMount) -> String {
    let target = shell::quote(&mount.target);
    let access = if mount.read_only { "ro" } else { "rw" };
    let body = match &mount.source {
        MountSource::Disk { label, mode, gid } => {
            let files = !mode & 0o777;
            // Who may read may search.
            let folders = !(mode | (mode & 0o444) >> 2) & 0o777;
            format!(
                "mkdir -p {target} && mount -t vfat -o \
                 ro,nosuid,nodev,gid={gid},fmask={files:04o},dmask={folders:04o} \
                 LABEL={label} {target}"
            )
        }
        MountSource::Share { tag, below } => {
            let source = shell::quote(&format!("{SHARE}/{below}"));
            let tag = shell::quote(tag);
            format!(
                "mkdir -p {SHARE} && {{ mountpoint -q {SHARE} || mount -t virtiofs {tag} {SHARE}; }} && \
                 if [ -d {source} ]; then mkdir -p {target}; \
                 else mkdir -p \"$(dirname {target})\" && touch {target}; fi && \
                 mount --bind {source} {target} && mount -o remount,bind,nosuid,nodev,{access} {target}"
            )
        }
    };
    format!("mountpoint -q {target} || {{ {body}; }} || echo {target} is not mounted >&2\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_mounted_by_its_label_with_the_modes_of_its_volume() {
        let mount = GuestMount {
            source: MountSource::Disk {
                label: "SECRET0".into(),
                mode: 0o440,
                gid: 7,
            },
            target: "/etc/it's".into(),
            read_only: true,
        };
        let commands = commands(&[mount]);
        assert!(
            commands.contains("gid=7,fmask=0337,dmask=0227 LABEL=SECRET0 '/etc/it'\\''s'"),
            "{commands}"
        );
    }

    #[test]
    fn a_share_is_bound_to_its_place() {
        let mount = GuestMount {
            source: MountSource::Share {
                tag: "podvisor".into(),
                below: "volume-1".into(),
            },
            target: "/data".into(),
            read_only: false,
        };
        let commands = commands(&[mount]);
        assert!(commands.contains("mount --bind '/run/podvisor/share/volume-1' '/data'"));
        assert!(commands.contains("remount,bind,nosuid,nodev,rw '/data'"));
    }
}
