//! `/etc/fstab` (fstab(5)).

use crate::tree::{FileTree, read_config};

/// Lines that are read.
const MAX_LINES: usize = 256;

/// What is mounted where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `UUID=…`, `LABEL=…`, `PARTUUID=…`, a device.
    pub source: String,
    /// Where.
    pub target: String,
    /// File system type.
    pub kind: String,
    /// Options, joined by commas.
    pub options: String,
}

impl Mount {
    /// The value of an option `NAME=VALUE`.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        let mut options = self.options.split(',');
        options.find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The mounts of a root file system; none where it has no such file.
#[must_use]
pub fn read(tree: &dyn FileTree) -> Vec<Mount> {
    let text = read_config(tree, "/etc/fstab").ok().flatten();
    let text = text.unwrap_or_default();
    text.lines().take(MAX_LINES).filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split_whitespace();
    let source = fields.next().filter(|source| !source.starts_with('#'))?;
    Some(Mount {
        source: source.to_owned(),
        target: fields.next()?.to_owned(),
        kind: fields.next().unwrap_or_default().to_owned(),
        options: fields.next().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryTree;

    #[test]
    fn comments_and_short_lines_are_no_mounts() {
        let text = "# a comment\nUUID=1 / btrfs rw,subvol=@ 0 1\n\nbroken\n/dev/vda1 /boot ext4\n";
        let mounts = read(&MemoryTree::new(&[("/etc/fstab", text)]));
        let targets: Vec<&str> = mounts.iter().map(|mount| &*mount.target).collect();
        assert_eq!(targets, ["/", "/boot"]);
        assert_eq!(mounts[0].option("subvol"), Some("@"));
        assert_eq!(mounts[1].option("subvol"), None);
    }
}
