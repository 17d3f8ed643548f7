//! What a disk can boot, in the order in which it is tried.

use crate::bls;
use crate::extlinux;
use crate::grub;
use crate::plain;
use crate::volume::{Entry, Volume};

/// Where GRUB's configuration lies, seen from a root and from a boot partition.
const GRUB_CONFIGS: &[&str] = &[
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];
/// Folders of an EFI system partition whose configuration leads to the one above.
const EFI: &str = "/EFI";

/// What was found.
#[derive(Debug, Default)]
pub struct Discovery {
    /// What can be tried, the best first.
    pub entries: Vec<Entry>,
    /// What was found and is of no use, in words.
    pub findings: Vec<String>,
}

impl Discovery {
    /// Puts the entry of this id or title first, if there is one.
    pub fn prefer(&mut self, name: &str) {
        let by =
            |key: fn(&Entry) -> &String| self.entries.iter().position(|entry| key(entry) == name);
        let found = by(|entry| &entry.id).or_else(|| by(|entry| &entry.title));
        if let Some(found) = found {
            let entry = self.entries.remove(found);
            self.entries.insert(0, entry);
        }
    }

    fn note(&mut self, volume: &Volume, finding: &str) {
        self.findings.push(format!("{}: {finding}", volume.device));
    }
}

/// Looks at the volumes of a disk. What a boot loader was installed for comes first: systemd-boot,
/// then GRUB; then entries and images that any loader would take, extlinux, and kernels without a
/// configuration.
#[must_use]
pub fn discover(volumes: &[Volume]) -> Discovery {
    let mut discovery = Discovery::default();
    let (with_loader, without): (Vec<_>, Vec<_>) = (0..)
        .zip(volumes)
        .partition(|(_, volume)| bls::has_loader(volume));
    for (at, volume) in &with_loader {
        specification(volumes, *at, volume, &mut discovery);
    }
    grub_menus(volumes, &mut discovery);
    for (at, volume) in &without {
        specification(volumes, *at, volume, &mut discovery);
    }
    for (at, volume) in (0..).zip(volumes) {
        let Some(path) = extlinux::config_of(volume) else {
            continue;
        };
        let menu = extlinux::menu(volumes, at, path);
        if menu.entries.is_empty() {
            let why = describe(&menu.unusable, "has no Linux entry");
            discovery.note(volume, &format!("{path} {why}"));
        }
        discovery.entries.extend(menu.entries);
    }
    for (at, _) in (0..).zip(volumes) {
        discovery.entries.extend(plain::entries(volumes, at));
    }
    discovery
}

fn specification(volumes: &[Volume], at: usize, volume: &Volume, discovery: &mut Discovery) {
    let menu = bls::entries(volumes, at);
    discovery.entries.extend(menu.entries);
    for unusable in menu.unusable {
        discovery.note(volume, &unusable);
    }
}

fn grub_menus(volumes: &[Volume], discovery: &mut Discovery) {
    // A stub on the EFI system partition says which of several configurations counts.
    let stubs = (0..).zip(volumes).flat_map(|(at, volume)| {
        let folders = volume.tree.list(EFI).into_iter();
        folders.map(move |folder| (at, format!("{EFI}/{folder}/grub.cfg")))
    });
    let full = (0..volumes.len()).flat_map(|at| {
        GRUB_CONFIGS
            .iter()
            .map(move |path| (at, (*path).to_owned()))
    });
    for (at, path) in stubs.chain(full) {
        let Some(volume) = volumes.get(at).filter(|volume| volume.tree.has_file(&path)) else {
            continue;
        };
        match grub::menu(volumes, at, &path) {
            Ok(menu) if menu.entries.is_empty() => {
                let why = describe(
                    &menu.unusable,
                    "is a GRUB configuration without a Linux entry",
                );
                discovery.note(volume, &format!("{path} {why}"));
            }
            Ok(menu) => {
                discovery.entries.extend(menu.entries);
                // A second configuration is the same, or stale.
                return;
            }
            Err(error) => discovery.note(volume, &format!("{path} is not understood: {error}")),
        }
    }
}

fn describe(unusable: &[String], what: &str) -> String {
    /// Entries that a message names.
    const SHOWN: usize = 3;
    match unusable.len() {
        0 => what.to_owned(),
        len => {
            let shown: Vec<&str> = unusable.iter().take(SHOWN).map(String::as_str).collect();
            let more = if len > SHOWN { ", …" } else { "" };
            format!("{what}: {}{more}", shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryTree;
    use crate::volume::Origin;

    const GRUB: &str = "menuentry 'A' { linux /boot/vmlinuz-1 a\n }\n";

    fn origins(discovery: &Discovery) -> Vec<Origin> {
        discovery.entries.iter().map(|entry| entry.origin).collect()
    }

    #[test]
    fn every_kind_of_configuration_is_found_in_its_order() {
        let volume = MemoryTree::new(&[
            ("/boot/grub/grub.cfg", GRUB),
            ("/boot/vmlinuz-1", ""),
            ("/boot/loader/entries/b.conf", "linux /vmlinuz-1\n"),
            (
                "/boot/extlinux/extlinux.conf",
                "label c\nlinux /boot/vmlinuz-1\n",
            ),
        ])
        .into_volume("vda1", "A");
        let found = discover(&[volume]);
        let expected = [Origin::Grub, Origin::Bls, Origin::Extlinux, Origin::Plain];
        assert_eq!(origins(&found), expected);
        assert!(found.findings.is_empty(), "{found:?}");
    }

    #[test]
    fn an_installed_loader_comes_before_grub() {
        let esp = MemoryTree::new(&[
            ("/loader/loader.conf", "timeout 0\n"),
            ("/loader/entries/b.conf", "linux /linux\n"),
            ("/linux", ""),
        ]);
        let root = MemoryTree::new(&[("/boot/grub/grub.cfg", GRUB), ("/boot/vmlinuz-1", "")]);
        let volumes = [root.into_volume("vda2", "R"), esp.into_volume("vda1", "E")];
        let found = discover(&volumes);
        assert_eq!(found.entries[0].origin, Origin::Bls);
        assert_eq!(found.entries[0].kernel.volume, 1);
    }

    #[test]
    fn a_stub_leads_to_the_configuration() {
        let stub =
            "search.fs_uuid R root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n";
        let esp = MemoryTree::new(&[("/EFI/debian/grub.cfg", stub)]);
        let root = MemoryTree::new(&[("/boot/grub/grub.cfg", GRUB), ("/boot/vmlinuz-1", "")]);
        let volumes = [esp.into_volume("vda1", "E"), root.into_volume("vda2", "R")];
        let found = discover(&volumes);
        assert_eq!(found.entries[0].kernel.volume, 1);
        assert_eq!(found.entries[0].args, "a");
    }

    #[test]
    fn a_configuration_of_no_use_is_told() {
        let config = "menuentry 'Windows' { chainloader +1\n }\n";
        let volume = MemoryTree::new(&[("/grub/grub.cfg", config)]).into_volume("vda1", "A");
        let found = discover(&[volume]);
        let expected = "vda1: /grub/grub.cfg is a GRUB configuration without a Linux entry: \
            entry \"Windows\" runs chainloader";
        assert_eq!(found.findings, [expected]);
    }

    #[test]
    fn the_preferred_entry_comes_first() {
        let config = "label a\nlinux /k\nlabel b\nmenu label Rescue\nlinux /k\n";
        let volume = MemoryTree::new(&[("/extlinux.conf", config)]).into_volume("vda1", "A");
        let mut found = discover(&[volume]);
        found.prefer("Rescue");
        assert_eq!(found.entries[0].id, "b");
        found.prefer("a");
        assert_eq!(found.entries[0].id, "a");
        found.prefer("none");
        assert_eq!(found.entries[0].id, "a");
    }
}
