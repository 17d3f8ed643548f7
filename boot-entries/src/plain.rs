//! Kernels that lie where distributions put them, with no configuration that names them.

use crate::fstab;
use crate::version::compare;
use crate::volume::{Entry, File, Origin, Volume};

/// Beginnings of kernels' names, before their version.
const KERNELS: &[&str] = &["vmlinuz", "bzImage", "kernel", "linux"];
/// Names of the initial image of a kernel, `{}` standing for what follows the kernel's name.
const INITRDS: &[&str] = &[
    "initrd.img{}",
    "initramfs{}.img",
    "initrd{}.img",
    "initrd{}",
    "initramfs{}",
    "initramfs{}.cpio.gz",
];
/// Folders that hold kernels: a root's, and those of a boot partition.
const FOLDERS: &[&str] = &["/boot", ""];
/// Where kernels lie in packages without a file in /boot.
const MODULES: &str = "/usr/lib/modules";
/// What a root file system has.
const INITS: &[&str] = &[
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/init",
    "/bin/init",
];

/// Kernels of a volume, newest first; those that a link without a version names before the others.
#[must_use]
pub fn entries(volumes: &[Volume], volume: usize) -> Vec<Entry> {
    let Some(on) = volumes.get(volume) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for folder in FOLDERS {
        let mut kernels: Vec<(String, String)> = on
            .tree
            .list(if folder.is_empty() { "/" } else { folder })
            .into_iter()
            .filter_map(|name| Some((suffix_of(&name)?.to_owned(), name)))
            .filter(|(_, name)| on.tree.has_file(&format!("{folder}/{name}")))
            .collect();
        // A link without a version is what the distribution boots; then the newest.
        kernels.sort_by(|(a, _), (b, _)| {
            let has_version = (!a.is_empty()).cmp(&!b.is_empty());
            has_version.then_with(|| compare(b, a))
        });
        for (suffix, name) in kernels {
            let kernel = format!("{folder}/{name}");
            let initrd = initrd_of(on, folder, &suffix);
            found.push(entry(volumes, volume, kernel, initrd));
        }
    }
    found.extend(of_modules(volumes, volume));
    found
}

/// The part of a kernel's name after what tells that it is one: empty, or `-VERSION`.
fn suffix_of(name: &str) -> Option<&str> {
    let known = KERNELS.iter().find_map(|kernel| name.strip_prefix(kernel));
    let suffix = known.filter(|suffix| suffix.is_empty() || suffix.starts_with('-'))?;
    // Debian's links to the last but one kernel, and rescue images, come by themselves or not at all.
    let is_other = [".old", ".sig", ".hmac", ".bak"]
        .iter()
        .any(|end| suffix.ends_with(end));
    (!is_other).then_some(suffix)
}

fn initrd_of(volume: &Volume, folder: &str, suffix: &str) -> Option<String> {
    let paths = INITRDS
        .iter()
        .map(|name| format!("{folder}/{}", name.replace("{}", suffix)));
    let mut files = paths.filter(|path| volume.tree.has_file(path));
    files.next()
}

fn of_modules(volumes: &[Volume], volume: usize) -> Vec<Entry> {
    let Some(on) = volumes.get(volume) else {
        return Vec::new();
    };
    let mut versions = on.tree.list(MODULES);
    versions.sort_by(|a, b| compare(b, a));
    let kernels = versions.into_iter().filter_map(|version| {
        let kernel = format!("{MODULES}/{version}/vmlinuz");
        if !on.tree.has_file(&kernel) {
            return None;
        }
        let beside = ["initrd", "initramfs.img"].map(|name| format!("{MODULES}/{version}/{name}"));
        let beside = beside.into_iter().find(|path| on.tree.has_file(path));
        let initrd = beside.or_else(|| initrd_of(on, "/boot", &format!("-{version}")));
        Some(entry(volumes, volume, kernel, initrd))
    });
    kernels.collect()
}

fn entry(volumes: &[Volume], volume: usize, kernel: String, initrd: Option<String>) -> Entry {
    let args = root_arguments(volumes, volume, initrd.is_some());
    Entry {
        origin: Origin::Plain,
        id: kernel.clone(),
        title: kernel.clone(),
        kernel: File {
            volume,
            path: kernel,
        },
        initrds: initrd
            .map(|path| File { volume, path })
            .into_iter()
            .collect(),
        args,
    }
}

/// `root=` and its flags: the volume itself when it is a root file system, else the first that is.
fn root_arguments(volumes: &[Volume], volume: usize, has_initrd: bool) -> String {
    let own = volumes.get(volume);
    let candidates = own.into_iter().chain(volumes);
    let mut roots = candidates.filter(|volume| is_root(volume));
    let Some(root) = roots.next() else {
        return String::new();
    };
    let mut args = root.root_argument(has_initrd);
    let flags = root.root_flags.clone().or_else(|| {
        let mounts = fstab::read(&*root.tree);
        let mount = mounts.iter().find(|mount| mount.target == "/")?;
        Some(format!("subvol={}", mount.option("subvol")?))
    });
    if let Some(flags) = flags {
        args.push_str(" rootflags=");
        args.push_str(&flags);
    }
    args.push_str(" ro");
    args
}

fn is_root(volume: &Volume) -> bool {
    INITS.iter().any(|path| volume.tree.kind(path).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryTree;

    #[test]
    fn the_newest_kernel_comes_with_its_initial_image_and_the_root() {
        let files = [
            "/boot/vmlinuz-6.12.57+deb13-amd64",
            "/boot/initrd.img-6.12.57+deb13-amd64",
            "/boot/vmlinuz-6.12.107+deb13-amd64",
            "/boot/initrd.img-6.12.107+deb13-amd64",
            "/boot/vmlinuz-6.12.1.old",
            "/sbin/init",
        ]
        .map(|path| (path, ""));
        let volume = MemoryTree::new(&files).into_volume("vda1", "abc");
        let found = entries(&[volume], 0);
        let kernels: Vec<&str> = found.iter().map(|entry| &*entry.kernel.path).collect();
        assert_eq!(kernels, [files[2].0, files[0].0]);
        assert_eq!(found[0].initrds[0].path, files[3].0);
        assert_eq!(found[0].args, "root=UUID=abc ro");
    }

    #[test]
    fn a_boot_partition_belongs_to_the_root_beside_it() {
        let boot = MemoryTree::new(&[("/vmlinuz-lts", ""), ("/initramfs-lts", "")]);
        let mut root = MemoryTree::new(&[("/sbin/init", "")]).into_volume("vda2", "root");
        root.root_flags = Some("subvol=@".to_owned());
        let volumes = [boot.into_volume("vda1", "boot"), root];
        let found = entries(&volumes, 0);
        assert_eq!(found[0].args, "root=UUID=root rootflags=subvol=@ ro");
        assert_eq!(found[0].initrds[0].path, "/initramfs-lts");
    }

    #[test]
    fn a_kernel_without_an_initial_image_finds_its_root_by_itself() {
        let tree = MemoryTree::new(&[("/boot/vmlinuz", ""), ("/sbin/init", "")]);
        let mut volume = tree.into_volume("vda1", "abc");
        assert_eq!(entries(&[volume], 0)[0].args, "root=/dev/vda1 ro");
        volume = MemoryTree::new(&[("/usr/lib/modules/6.12/vmlinuz", ""), ("/sbin/init", "")])
            .into_volume("vda1", "abc");
        volume.partition_uuid = Some("part".to_owned());
        assert_eq!(entries(&[volume], 0)[0].args, "root=PARTUUID=part ro");
    }
}
