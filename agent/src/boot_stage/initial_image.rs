//! Bootable trees: the machine's root is a folder that the host shares. Its kernel is started with
//! an initial image made here: this program, which mounts the folder ([`super::root_stage`]), and
//! the modules that takes.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use podvisor_boot_entries::modules::Modules;
use podvisor_boot_entries::{Volume, plain, read_config};
use podvisor_proto::agent::v1::{BootMachineRequest, BootMachineResponse};
use podvisor_proto::agent::{FS_TAG, SHARED_DIR};
use rustix::mount::{MountFlags, mount};

use super::images::{self, Images};
use super::kexec::MemoryFile;
use super::sources::{self, Booted};
use super::tree::Tree;
use super::{BootStageError, root_stage, step};

/// What the first program of the tree's kernel needs of it.
const NEEDED: &[&str] = &["virtio_pci", "fuse", "virtiofs"];
/// Longest module that is taken.
const MAX_MODULE_LEN: u64 = 64 << 20;
const MODE_FOLDER: u32 = 0o040_755;
const MODE_PROGRAM: u32 = 0o100_755;
const MODE_FILE: u32 = 0o100_644;
const MODE_CHARACTER_DEVICE: u32 = 0o020_600;

/// Loads the kernel of the exported tree `name`.
///
/// # Errors
///
/// [`BootStageError`] for what the tree is not to blame for.
pub fn from_tree(name: &str, request: &BootMachineRequest) -> Result<Booted, BootStageError> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(BootStageError::Malformed(
            "a tree's name is no name of an export",
        ));
    }
    mount_shared()?;
    let tree = match Tree::open(&Path::new(SHARED_DIR).join(name)) {
        Ok(tree) => tree,
        Err(error) => return Ok(Err(format!("tree {name}: it cannot be opened: {error}"))),
    };
    let volume = Volume {
        device: name.to_owned(),
        grub_names: Vec::new(),
        uuid: None,
        label: None,
        partition_uuid: None,
        root_flags: None,
        tree: Box::new(tree.clone()),
    };
    Ok(load(name, &tree, volume, request).map_err(|why| format!("tree {name}: {why}")))
}

fn mount_shared() -> Result<(), BootStageError> {
    std::fs::create_dir_all(SHARED_DIR).map_err(step(SHARED_DIR))?;
    // A second call finds it mounted.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount(FS_TAG, SHARED_DIR, "virtiofs", flags, c"") {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(errno) => Err(step(format!("mount virtio-fs {FS_TAG}"))(errno)),
    }
}

fn load(name: &str, tree: &Tree, volume: Volume, request: &BootMachineRequest) -> Booted {
    let entries = plain::entries(&[volume], 0);
    let Some(mut entry) = entries.into_iter().next() else {
        return Err("no kernel in /boot or /usr/lib/modules".to_owned());
    };
    // The tree's own initial image looks for a disk.
    entry.initrds.clear();
    let own = read_config(tree, "/etc/kernel/cmdline").ok().flatten();
    entry.args = format!("{} rw", own.unwrap_or_default().trim());
    let images = images::open(&entry, std::slice::from_ref(tree))?;
    let modules = needed_modules(tree, &images.release)?;
    let initrd = initial_image(name, tree, &modules)
        .map_err(|error| format!("an initial image cannot be made: {error}"))?;
    let images = Images {
        initrd: Some(initrd),
        ..images
    };
    let response = sources::start(&images, &entry.kernel.path, &request.kernel_args)?;
    Ok(BootMachineResponse {
        volume: name.to_owned(),
        entry_id: entry.id,
        entry_title: entry.title,
        ..response
    })
}

/// Paths of the modules to load, in order.
fn needed_modules(tree: &Tree, release: &str) -> Result<Vec<String>, String> {
    let folder = format!("/lib/modules/{release}");
    let read = |name: &str| {
        let text = read_config(tree, &format!("{folder}/{name}"));
        text.map_err(|error| format!("{folder}/{name} {error}"))
    };
    let dependencies = read("modules.dep")?;
    let Some(dependencies) = dependencies else {
        // A kernel that has no modules has what it needs, or says that it lacks it.
        return Ok(Vec::new());
    };
    let built_in = read("modules.builtin")?.unwrap_or_default();
    let known = Modules::parse(&dependencies, &built_in);
    let mut paths: Vec<String> = Vec::new();
    for name in NEEDED {
        let order = known.order(name);
        let order = order.map_err(|error| format!("kernel {release}: {error}"))?;
        for file in order {
            let path = format!("{folder}/{file}");
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// An archive with this program, the tree's name and modules that are numbered in their order.
fn initial_image(name: &str, tree: &Tree, modules: &[String]) -> io::Result<File> {
    let mut image = Archive::new()?;
    image.entry("dev", MODE_FOLDER, (0, 0), &[])?;
    image.entry("dev/console", MODE_CHARACTER_DEVICE, (5, 1), &[])?;
    let agent = std::fs::read("/proc/self/exe")?;
    image.entry("init", MODE_PROGRAM, (0, 0), &agent)?;
    image.entry(root_stage::TREE, MODE_FILE, (0, 0), name.as_bytes())?;
    image.entry(root_stage::MODULES, MODE_FOLDER, (0, 0), &[])?;
    for (number, path) in modules.iter().enumerate() {
        let suffix = path.rsplit_once('/').map_or("", |(_, file)| file);
        let target = format!("{}/{number:03}-{suffix}", root_stage::MODULES);
        let mut content = Vec::new();
        let file = tree.file(path)?;
        file.take(MAX_MODULE_LEN).read_to_end(&mut content)?;
        image.entry(&target, MODE_FILE, (0, 0), &content)?;
    }
    image.finish()
}

/// An archive of cpio's "new ASCII" kind
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive {
    file: MemoryFile,
    inode: u32,
}

impl Archive {
    fn new() -> io::Result<Self> {
        Ok(Self {
            file: MemoryFile::new("initrd")?,
            inode: 0,
        })
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        let name = name.trim_start_matches('/');
        let len = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_len = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, len, 0, 0, device.0, device.1, name_len, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.file.append(&mut header.as_bytes())?;
        self.file.append(&mut &*content)
    }

    fn finish(mut self) -> io::Result<File> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.file.into_file())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn the_image_has_the_modules_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("lib/modules/6.12");
        std::fs::create_dir_all(modules.join("kernel")).unwrap();
        for (file, content) in [
            (
                "modules.dep",
                "kernel/virtiofs.ko: kernel/fuse.ko\nkernel/fuse.ko:\n",
            ),
            ("modules.builtin", "kernel/virtio_pci.ko\n"),
            ("kernel/virtiofs.ko", "VIRTIOFS"),
            ("kernel/fuse.ko", "FUSE"),
        ] {
            std::fs::write(modules.join(file), content).unwrap();
        }
        let tree = Tree::open(folder.path()).unwrap();
        let needed = needed_modules(&tree, "6.12").unwrap();
        let image = initial_image("root-1", &tree, &needed).unwrap();
        let mut bytes = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
        image.read_exact_at(&mut bytes, 0).unwrap();
        // From the end: this program comes first, and has these texts in it, too.
        let at = |text: &[u8]| bytes.windows(text.len()).rposition(|part| part == text);
        assert!(at(b"modules/000-fuse.ko\0").unwrap() < at(b"FUSE").unwrap());
        assert!(at(b"FUSE").unwrap() < at(b"modules/001-virtiofs.ko\0").unwrap());
        assert!(at(b"root-1").is_some());
        assert!(needed_modules(&tree, "6.1").unwrap().is_empty());
    }

    #[test]
    fn a_kernel_that_lacks_a_module_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("lib/modules/6.12");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("modules.dep"), "").unwrap();
        let tree = Tree::open(folder.path()).unwrap();
        let why = needed_modules(&tree, "6.12").unwrap_err();
        assert_eq!(why, "kernel 6.12: the kernel has no module virtio_pci");
    }
}
