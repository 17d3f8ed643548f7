//! Any text as the boot configuration of a disk: GRUB's, extlinux's, entries of the Boot Loader
//! Specification, fstab.
//!
//! The first byte says which file the text is in; the disk has others beside it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podvisor_boot_entries::testing::MemoryTree;
use podvisor_boot_entries::{discover, grub};
use podvisor_fuzz::seeds;

const PLACES: &[&str] = &[
    "/boot/grub/grub.cfg",
    "/boot/grub/grubenv",
    "/boot/extlinux/extlinux.conf",
    "/loader/entries/one.conf",
    "/loader/loader.conf",
    "/EFI/debian/grub.cfg",
    "/etc/fstab",
];
/// What the other files hold.
const GRUB: &str = "load_env\nset default=$saved_entry\nblscfg\nsource $prefix/custom.cfg\n\
    menuentry x --id y {\nlinux /boot/vmlinuz-1 $a\n}\n";
const ENTRY: &str = "title One\nversion 1\nlinux /boot/vmlinuz-1\noptions $kernelopts\n";

fuzz_target!(init: seeds(texts), |data: &[u8]| {
    let Some((place, text)) = data.split_first() else {
        return;
    };
    let place = PLACES[usize::from(*place) % PLACES.len()];
    let mut files = vec![
        ("/boot/grub/grub.cfg", GRUB.as_bytes()),
        ("/loader/entries/one.conf", ENTRY.as_bytes()),
        ("/boot/vmlinuz-1", b""),
        ("/sbin/init", b""),
    ];
    files.retain(|(path, _)| *path != place);
    files.push((place, text));
    let volume = MemoryTree::new(&files).into_volume("vda1", "A");
    let volumes = [volume];
    let mut found = discover(&volumes);
    for entry in &found.entries {
        assert!(entry.kernel.path.starts_with('/') && entry.kernel.volume < volumes.len());
    }
    found.prefer("y");
    // Whatever was found first, an error has a text.
    if let Err(error) = grub::menu(&volumes, 0, place) {
        assert!(!error.to_string().is_empty());
    }
});

/// A text of each kind, in its place.
fn texts() -> Vec<Vec<u8>> {
    let functions = "function f {\nfor v in 1 2 3; do if [ $v -lt 2 -o ! -f /x ]; then continue; \
        elif test -s (vda1)/boot/vmlinuz-1; then a=\"$a $v\"; else break; fi; done\n}\nf a 'b c'\n\
        search --no-floppy --fs-uuid --set=root A\nsubmenu s {\n menuentry m {\n\
        linux /boot/vmlinuz-1 \"$1\"\ninitrd /boot/vmlinuz-1\n}\n}\nuntil true; do eval x; done\n\
        set default='s>m'\nprobe --set=u --fs-uuid (vda1)\nwhile false; do true; done\n";
    let extlinux = "DEFAULT b\nAPPEND quiet\nLABEL a\nKERNEL ../vmlinuz-1\nINITRD a,b\n\
        MENU LABEL ^A\nLABEL b\nLINUX /k\nAPPEND initrd=/i root=/dev/vda1\nINCLUDE extlinux.conf\n";
    let texts = [
        functions,
        "# GRUB Environment Block\nsaved_entry=y\nkernelopts=root=UUID=A\n####",
        extlinux,
        ENTRY,
        "timeout 3\ndefault *-1.conf\n",
        "search.fs_uuid A root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n",
        "UUID=A / btrfs subvol=@ 0 1\n",
    ];
    (0..)
        .zip(texts)
        .map(|(place, text): (u8, &str)| [&[place], text.as_bytes()].concat())
        .collect()
}
