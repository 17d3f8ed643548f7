//! The Boot Loader Specification (UAPI group): configuration files of type 1 in `loader/entries`,
//! unified kernel images of type 2 in `EFI/Linux`, `loader/loader.conf`.

use std::cmp::Ordering;

use crate::tree::read_config;
use crate::uki::Uki;
use crate::version::compare;
use crate::volume::{Entry, File, Origin, Volume};

/// Most entries of a folder that are read.
const MAX_ENTRIES: usize = 256;
/// Most initial images of an entry.
const MAX_INITRDS: usize = 32;
/// Names of this machine's architecture (the specification's are EFI's).
const ARCHITECTURES: &[&str] = &["x64", "x86-64", "x86_64"];
/// Where entries of type 1 lie, seen from a boot partition and from a root file system.
const ENTRY_FOLDERS: &[&str] = &["/loader/entries", "/boot/loader/entries"];
/// Where images of type 2 lie.
const IMAGE_FOLDERS: &[&str] = &["/EFI/Linux", "/boot/EFI/Linux", "/boot/efi/EFI/Linux"];

/// An entry, and what its place in the menu depends on.
#[derive(Debug)]
struct Candidate {
    entry: Entry,
    sort_key: String,
    machine_id: String,
    version: String,
    /// Whether its boot counter has come to zero.
    is_bad: bool,
}

/// What was found on a volume.
#[derive(Debug, Default)]
pub struct BlsMenu {
    /// The default entry first, the others in the specification's order.
    pub entries: Vec<Entry>,
    /// Files that are no entries, and why.
    pub unusable: Vec<String>,
}

/// Whether a volume is what systemd-boot is started from.
#[must_use]
pub fn has_loader(volume: &Volume) -> bool {
    ["/loader/loader.conf", "/EFI/systemd/systemd-bootx64.efi"]
        .iter()
        .any(|path| volume.tree.has_file(path))
}

/// The entries of a volume, of both types.
#[must_use]
pub fn entries(volumes: &[Volume], volume: usize) -> BlsMenu {
    let mut menu = BlsMenu::default();
    let mut candidates = Vec::new();
    for folder in ENTRY_FOLDERS {
        type_1(volumes, volume, folder, &mut candidates, &mut menu.unusable);
    }
    for folder in IMAGE_FOLDERS {
        type_2(volumes, volume, folder, &mut candidates, &mut menu.unusable);
    }
    candidates.sort_by(order);
    menu.entries = candidates.into_iter().map(|found| found.entry).collect();
    let pattern = volumes.get(volume).map(default_pattern).unwrap_or_default();
    let chosen = menu.entries.iter().position(|entry| {
        glob(&pattern, &entry.id) || glob(&pattern, &format!("{}.conf", entry.id))
    });
    if let Some(chosen) = chosen {
        let entry = menu.entries.remove(chosen);
        menu.entries.insert(0, entry);
    }
    menu
}

/// Entries of type 1 in the order of GRUB's `blscfg`: the greatest file name first.
#[must_use]
pub fn grub_entries(volumes: &[Volume], volume: usize, folder: &str) -> Vec<Entry> {
    let mut candidates = Vec::new();
    type_1(volumes, volume, folder, &mut candidates, &mut Vec::new());
    candidates.sort_by(|a, b| compare(&b.entry.id, &a.entry.id));
    candidates.into_iter().map(|found| found.entry).collect()
}

/// The specification's order: what failed last; then by sort key, machine and version; what has
/// no sort key by its name, newest first.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    let keys = || match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => a
            .sort_key
            .cmp(&b.sort_key)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| compare(&b.version, &a.version)),
    };
    a.is_bad
        .cmp(&b.is_bad)
        .then_with(keys)
        .then_with(|| compare(&b.entry.id, &a.entry.id))
}

/// `default` of loader.conf; empty when there is none.
fn default_pattern(volume: &Volume) -> String {
    let text = read_config(&*volume.tree, "/loader/loader.conf");
    let text = text.ok().flatten().unwrap_or_default();
    let mut defaults = lines(&text).filter(|(key, _)| *key == "default");
    defaults
        .next_back()
        .map_or(String::new(), |(_, value)| value.to_owned())
}

/// Keys and values of a file of type 1 or of loader.conf.
fn lines(text: &str) -> impl DoubleEndedIterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (key, value) = line.split_once(char::is_whitespace)?;
        (!key.starts_with('#')).then(|| (key, value.trim()))
    })
}

fn type_1(
    volumes: &[Volume],
    volume: usize,
    folder: &str,
    found: &mut Vec<Candidate>,
    unusable: &mut Vec<String>,
) {
    let Some(tree) = volumes.get(volume).map(|volume| &*volume.tree) else {
        return;
    };
    let names = tree.list(folder);
    for name in names.iter().take(MAX_ENTRIES) {
        let Some(stem) = name.strip_suffix(".conf") else {
            continue;
        };
        let path = format!("{folder}/{name}");
        let candidate = match read_config(tree, &path) {
            Ok(Some(text)) => parse(volumes, volume, folder, stem, &text),
            Ok(None) => continue,
            Err(error) => Err(error.to_string()),
        };
        match candidate {
            Ok(candidate) => found.push(candidate),
            Err(why) => unusable.push(format!("{path} {why}")),
        }
    }
}

/// An entry of type 1; `Err` says in words why it is none.
fn parse(
    volumes: &[Volume],
    volume: usize,
    folder: &str,
    stem: &str,
    text: &str,
) -> Result<Candidate, String> {
    let (id, is_bad) = without_counter(stem);
    let mut fields = Fields::default();
    for (key, value) in lines(text) {
        fields.take(key, value);
    }
    if !fields.architecture.is_empty()
        && !ARCHITECTURES.contains(&fields.architecture.to_lowercase().as_str())
    {
        return Err(format!("is for {}", fields.architecture));
    }
    let place = |path: &str| place(volumes, volume, folder, path);
    let (kernel, origin) = match (fields.linux.as_str(), fields.efi.as_str()) {
        ("", "") => return Err("names no kernel".to_owned()),
        ("", image) => (place(image), Origin::Uki),
        (kernel, _) => (place(kernel), Origin::Bls),
    };
    let title = if fields.title.is_empty() {
        id.clone()
    } else {
        fields.title
    };
    Ok(Candidate {
        entry: Entry {
            origin,
            id,
            title,
            kernel,
            initrds: fields.initrds.iter().map(|path| place(path)).collect(),
            args: fields.options.join(" "),
        },
        sort_key: fields.sort_key,
        machine_id: fields.machine_id,
        version: fields.version,
        is_bad,
    })
}

#[derive(Default)]
struct Fields {
    title: String,
    version: String,
    machine_id: String,
    sort_key: String,
    linux: String,
    efi: String,
    initrds: Vec<String>,
    options: Vec<String>,
    architecture: String,
}

impl Fields {
    fn take(&mut self, key: &str, value: &str) {
        let field = match key {
            "title" => &mut self.title,
            "version" => &mut self.version,
            "machine-id" => &mut self.machine_id,
            "sort-key" => &mut self.sort_key,
            "linux" => &mut self.linux,
            "efi" => &mut self.efi,
            "architecture" => &mut self.architecture,
            "initrd" => {
                // Fedora writes several, and variables of GRUB, into one line.
                let room = MAX_INITRDS - self.initrds.len().min(MAX_INITRDS);
                let paths = value.split_whitespace().take(room).map(str::to_owned);
                return self.initrds.extend(paths);
            }
            "options" => return self.options.push(value.to_owned()),
            // devicetree and what else there may be does not matter to this machine.
            _ => return,
        };
        value.clone_into(field);
    }
}

/// A path of an entry is that of its volume. Some tools write it as seen from a mounted /boot
/// although it is part of the root file system.
fn place(volumes: &[Volume], volume: usize, folder: &str, path: &str) -> File {
    let mut path = format!("/{}", path.trim_start_matches('/'));
    let tree = volumes.get(volume).map(|volume| &volume.tree);
    if let Some(tree) = tree
        && folder.starts_with("/boot/")
        && tree.kind(&path).is_none()
    {
        let below_boot = format!("/boot{path}");
        if tree.kind(&below_boot).is_some() {
            path = below_boot;
        }
    }
    File { volume, path }
}

/// The name without its boot counter `+LEFT` or `+LEFT-DONE`, and whether no tries are left.
fn without_counter(stem: &str) -> (String, bool) {
    if let Some((name, counter)) = stem.rsplit_once('+') {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        if let (Ok(left), Ok(_)) = (left.parse::<u32>(), done.parse::<u32>()) {
            return (name.to_owned(), left == 0);
        }
    }
    (stem.to_owned(), false)
}

fn type_2(
    volumes: &[Volume],
    volume: usize,
    folder: &str,
    found: &mut Vec<Candidate>,
    unusable: &mut Vec<String>,
) {
    let Some(tree) = volumes.get(volume).map(|volume| &*volume.tree) else {
        return;
    };
    let names = tree.list(folder);
    for name in names.iter().take(MAX_ENTRIES) {
        let Some(stem) = name.strip_suffix(".efi") else {
            continue;
        };
        let path = format!("{folder}/{name}");
        match Uki::open(tree, &path) {
            Ok(image) => {
                let (id, is_bad) = without_counter(stem);
                found.push(unified(image, File { volume, path }, id, is_bad));
            }
            Err(error) => unusable.push(format!("{path} {error}")),
        }
    }
}

fn unified(image: Uki, kernel: File, id: String, is_bad: bool) -> Candidate {
    let release = |key: &str| image.os_release(key).unwrap_or_default();
    let sort_key = [release("IMAGE_ID"), release("ID")];
    let versions = [
        release("IMAGE_VERSION"),
        release("VERSION_ID"),
        release("BUILD_ID"),
    ];
    let first = |texts: &[String]| texts.iter().find(|text| !text.is_empty()).cloned();
    let title = first(&[release("PRETTY_NAME"), release("NAME"), id.clone()]);
    Candidate {
        sort_key: first(&sort_key).unwrap_or_default(),
        machine_id: String::new(),
        version: image
            .uname
            .clone()
            .or_else(|| first(&versions))
            .unwrap_or_default(),
        is_bad,
        entry: Entry {
            origin: Origin::Uki,
            title: title.unwrap_or_default(),
            id,
            kernel,
            initrds: Vec::new(),
            args: image.command_line.unwrap_or_default(),
        },
    }
}

/// Whether `text` matches a shell pattern of `*`, `?` and plain characters.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut of, mut star) = (0, 0, None);
    while let Some(byte) = text.get(at) {
        match pattern.get(of) {
            Some(b'*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(expected) if *expected == b'?' || expected == byte => {
                at += 1;
                of += 1;
            }
            // The last star takes one byte more.
            _ => match star {
                Some((star_of, star_at)) => {
                    star = Some((star_of, star_at + 1));
                    of = star_of + 1;
                    at = star_at + 1;
                }
                None => return false,
            },
        }
    }
    let rest = pattern.get(of..).unwrap_or_default();
    rest.iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryTree;
    use proptest::prelude::*;

    const ENTRY: &str = "# written by kernel-install\ntitle Debian GNU/Linux 13\nversion 6.12.57\n\
        machine-id abc\nsort-key debian\noptions root=UUID=1 ro\noptions quiet\n\
        linux /abc/6.12.57/linux\ninitrd /abc/6.12.57/initrd.img\ndevicetree /x.dtb\n";

    fn menu(files: &[(&str, &str)]) -> BlsMenu {
        entries(&[MemoryTree::new(files).into_volume("vda1", "A")], 0)
    }

    fn ids(menu: &BlsMenu) -> Vec<&str> {
        menu.entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn an_entry_has_kernel_initial_image_and_all_options() {
        let menu = menu(&[("/loader/entries/abc-6.12.57.conf", ENTRY)]);
        let [entry] = menu.entries.as_slice() else {
            panic!("{menu:?}")
        };
        assert_eq!(entry.title, "Debian GNU/Linux 13");
        assert_eq!(entry.args, "root=UUID=1 ro quiet");
        assert_eq!(entry.kernel.path, "/abc/6.12.57/linux");
        assert_eq!(entry.initrds[0].path, "/abc/6.12.57/initrd.img");
    }

    #[test]
    fn newer_versions_come_first_and_exhausted_ones_last() {
        let newer = ENTRY.replace("6.12.57", "6.12.107");
        let broken = ENTRY.replace("6.12.57", "6.13.0");
        let menu = menu(&[
            ("/loader/entries/abc-6.12.57.conf", ENTRY),
            ("/loader/entries/abc-6.12.107+2-1.conf", &newer),
            ("/loader/entries/abc-6.13.0+0-3.conf", &broken),
            ("/loader/entries/legacy.conf", "linux /vmlinuz\n"),
        ]);
        let expected = ["abc-6.12.107", "abc-6.12.57", "legacy", "abc-6.13.0"];
        assert_eq!(ids(&menu), expected);
    }

    #[test]
    fn loader_conf_names_the_default_by_a_pattern() {
        let newer = ENTRY.replace("6.12.57", "6.12.107");
        let menu = menu(&[
            ("/loader/loader.conf", "timeout 3\ndefault *-6.12.57*\n"),
            ("/loader/entries/abc-6.12.57.conf", ENTRY),
            ("/loader/entries/abc-6.12.107.conf", &newer),
        ]);
        assert_eq!(ids(&menu), ["abc-6.12.57", "abc-6.12.107"]);
    }

    #[test]
    fn what_is_no_entry_for_this_machine_is_told() {
        let menu = menu(&[
            ("/loader/entries/arm.conf", "linux /a\narchitecture aa64\n"),
            ("/loader/entries/empty.conf", "title nothing\n"),
            ("/EFI/Linux/foreign.efi", "MZ"),
        ]);
        assert!(menu.entries.is_empty());
        assert_eq!(
            menu.unusable,
            [
                "/loader/entries/arm.conf is for aa64",
                "/loader/entries/empty.conf names no kernel",
                "/EFI/Linux/foreign.efi is no PE image",
            ]
        );
    }

    #[test]
    fn paths_may_be_those_of_a_mounted_boot() {
        let menu = menu(&[
            ("/boot/loader/entries/a.conf", "linux /vmlinuz-6.12\n"),
            ("/boot/vmlinuz-6.12", ""),
        ]);
        assert_eq!(menu.entries[0].kernel.path, "/boot/vmlinuz-6.12");
    }

    proptest! {
        #[test]
        fn any_text_is_an_entry_or_says_why_not(text in "(?s).{0,400}", name in "[a-z+0-9-]{1,12}") {
            let path = format!("/loader/entries/{name}.conf");
            let menu = menu(&[(path.as_str(), text.as_str())]);
            prop_assert_eq!(menu.entries.len() + menu.unusable.len(), 1);
        }

        #[test]
        fn a_text_matches_itself_and_stars(text in "[a-c*?]{0,16}") {
            prop_assert!(glob(&text, &text));
            prop_assert!(glob("*", &text));
            let longer = format!("{text}x");
            prop_assert!(glob("*x", &longer));
        }
    }
}
