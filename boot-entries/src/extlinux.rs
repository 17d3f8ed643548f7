//! The configuration of extlinux and syslinux (Syslinux wiki, "Config").

use crate::tree::read_config;
use crate::volume::{Entry, File, Origin, Volume};

/// Where configurations lie.
const CONFIGS: &[&str] = &[
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/EFI/BOOT/syslinux.cfg",
];
/// Files that a configuration includes, itself among them.
const MAX_FILES: usize = 32;
/// Labels of a configuration.
const MAX_LABELS: usize = 256;
/// Initial images of a label.
const MAX_INITRDS: usize = 32;

/// What a configuration offers.
#[derive(Debug, Default)]
pub struct ExtlinuxMenu {
    /// The Linux entries; the default one first, the others in the file's order.
    pub entries: Vec<Entry>,
    /// Labels that boot no Linux, and why, in words.
    pub unusable: Vec<String>,
}

/// The configuration of a volume.
#[must_use]
pub fn config_of(volume: &Volume) -> Option<&'static str> {
    CONFIGS
        .iter()
        .copied()
        .find(|path| volume.tree.has_file(path))
}

/// Reads the configuration `path` of a volume.
#[must_use]
pub fn menu(volumes: &[Volume], volume: usize, path: &str) -> ExtlinuxMenu {
    let mut menu = ExtlinuxMenu::default();
    let Some(on) = volumes.get(volume) else {
        return menu;
    };
    let mut reader = Reader {
        volume: on,
        folder: folder_of(path),
        files_left: MAX_FILES,
        default: String::new(),
        append: String::new(),
        labels: Vec::new(),
        unusable: Vec::new(),
    };
    reader.file(path);
    let Reader {
        folder,
        default,
        append,
        labels,
        mut unusable,
        ..
    } = reader;
    let mut entries = Vec::new();
    for label in labels {
        let is_default = label.is_default || label.name == default;
        match label.into_entry(volume, folder, &append) {
            Ok(entry) if is_default => entries.insert(0, entry),
            Ok(entry) => entries.push(entry),
            Err(why) => unusable.push(why),
        }
    }
    menu.entries = entries;
    menu.unusable = unusable;
    menu
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[derive(Debug, Default)]
struct Label {
    name: String,
    title: String,
    kernel: String,
    other: String,
    initrds: Vec<String>,
    append: Option<String>,
    is_default: bool,
}

impl Label {
    fn into_entry(self, volume: usize, folder: &str, append: &str) -> Result<Entry, String> {
        if self.kernel.is_empty() {
            return Err(match self.other.as_str() {
                "" => format!("label \"{}\" names no kernel", self.name),
                other => format!("label \"{}\" runs {other}", self.name),
            });
        }
        let append = match self.append.as_deref() {
            // A dash stands for nothing where a common line would be taken.
            Some("-") => "",
            Some(own) => own,
            None => append,
        };
        let (initrd_words, args): (Vec<&str>, Vec<&str>) = append
            .split_whitespace()
            .partition(|word| word.starts_with("initrd="));
        let in_args = initrd_words
            .iter()
            .filter_map(|word| word.strip_prefix("initrd="));
        let listed: Vec<String> = if self.initrds.is_empty() {
            in_args
                .flat_map(|list| list.split(','))
                .map(str::to_owned)
                .collect()
        } else {
            self.initrds
        };
        let place = |path: &str| File {
            volume,
            path: resolve(folder, path),
        };
        let initrds = listed.iter().filter(|path| !path.is_empty());
        let title = if self.title.is_empty() {
            self.name.clone()
        } else {
            self.title
        };
        Ok(Entry {
            origin: Origin::Extlinux,
            kernel: place(&self.kernel),
            initrds: initrds.take(MAX_INITRDS).map(|path| place(path)).collect(),
            args: args.join(" "),
            id: self.name,
            title,
        })
    }
}

/// A path as configurations have it, relative to the folder of the first of them.
fn resolve(folder: &str, path: &str) -> String {
    let joined = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{folder}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

struct Reader<'a> {
    volume: &'a Volume,
    folder: &'a str,
    files_left: usize,
    default: String,
    append: String,
    labels: Vec<Label>,
    unusable: Vec<String>,
}

impl Reader<'_> {
    fn file(&mut self, path: &str) {
        let Some(left) = self.files_left.checked_sub(1) else {
            return;
        };
        self.files_left = left;
        match read_config(&*self.volume.tree, path) {
            Ok(Some(text)) => text.lines().for_each(|line| self.line(line)),
            Ok(None) => {}
            Err(error) => self.unusable.push(format!("{path} {error}")),
        }
    }

    fn line(&mut self, line: &str) {
        let (keyword, value) = keyword(line);
        match keyword.as_str() {
            "default" | "ontimeout" => {
                // A menu program is no label; what is one wins below.
                if self.default.is_empty() || keyword == "ontimeout" {
                    value.clone_into(&mut self.default);
                }
            }
            "include" => self.include(value),
            "menu" => self.menu(value),
            "label" => {
                if self.labels.len() < MAX_LABELS {
                    self.labels.push(Label {
                        name: value.to_owned(),
                        ..Label::default()
                    });
                }
            }
            _ => self.of_label(&keyword, value),
        }
    }

    fn include(&mut self, value: &str) {
        let path = value.split_whitespace().next().unwrap_or_default();
        let path = resolve(self.folder, path);
        self.file(&path);
    }

    fn menu(&mut self, line: &str) {
        let (keyword, value) = keyword(line);
        match (keyword.as_str(), self.labels.last_mut()) {
            ("include", _) => self.include(value),
            ("default", Some(label)) => label.is_default = true,
            // The caret marks a key.
            ("label", Some(label)) => label.title = value.replace('^', ""),
            _ => {}
        }
    }

    fn of_label(&mut self, keyword: &str, value: &str) {
        let Some(label) = self.labels.last_mut() else {
            if keyword == "append" {
                value.clone_into(&mut self.append);
            }
            return;
        };
        match keyword {
            "linux" => value.clone_into(&mut label.kernel),
            "kernel" => {
                // `KERNEL` also starts programs and other boot loaders, told by their suffix.
                let programs = [".c32", ".bin", ".bs", ".0", ".com", ".img"];
                if programs.iter().any(|suffix| value.ends_with(suffix)) {
                    value.clone_into(&mut label.other);
                } else {
                    value.clone_into(&mut label.kernel);
                }
            }
            "initrd" => {
                label.initrds = value
                    .split(',')
                    .map(|path| path.trim().to_owned())
                    .collect()
            }
            "append" => label.append = Some(value.to_owned()),
            "com32" | "boot" | "localboot" | "config" => {
                label.other = format!("{keyword} {value}");
            }
            // fdt, fdtdir, ipappend, text, say and the like change nothing here.
            _ => {}
        }
    }
}

/// The keyword of a line, in small letters, and the rest.
fn keyword(line: &str) -> (String, &str) {
    let line = line.trim();
    let (keyword, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (keyword.to_ascii_lowercase(), value.trim())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::MemoryTree;
    use proptest::prelude::*;

    const PATH: &str = "/boot/extlinux/extlinux.conf";

    fn by_id(menu: &ExtlinuxMenu) -> BTreeMap<&str, &Entry> {
        let entries = menu.entries.iter();
        entries.map(|entry| (entry.id.as_str(), entry)).collect()
    }

    fn read(files: &[(&str, &str)]) -> ExtlinuxMenu {
        menu(&[MemoryTree::new(files).into_volume("vda1", "A")], 0, PATH)
    }

    #[test]
    fn labels_have_kernels_initial_images_and_arguments() {
        let config = "DEFAULT menu.c32\nTIMEOUT 50\n\nLABEL l0\n\tMENU LABEL Debian ^6.12\n\
            \tLINUX /boot/vmlinuz-6.12\n\tINITRD /boot/initrd.img-6.12\n\tFDTDIR /dtbs\n\
            \tAPPEND root=/dev/vda1 ro\n\nlabel l1\nmenu default\nkernel ../vmlinuz\n\
            append initrd=../a,../b root=/dev/vda1\n\nlabel hd\nlocalboot 0\n";
        let menu = read(&[(PATH, config)]);
        let entries = by_id(&menu);
        assert_eq!(menu.entries[0].id, "l1");
        assert_eq!(entries["l0"].title, "Debian 6.12");
        assert_eq!(entries["l0"].args, "root=/dev/vda1 ro");
        assert_eq!(entries["l1"].kernel.path, "/boot/vmlinuz");
        let initrds: Vec<&str> = entries["l1"]
            .initrds
            .iter()
            .map(|file| &*file.path)
            .collect();
        assert_eq!(initrds, ["/boot/a", "/boot/b"]);
        assert_eq!(entries["l1"].args, "root=/dev/vda1");
        assert_eq!(menu.unusable, ["label \"hd\" runs localboot 0"]);
    }

    #[test]
    fn the_common_line_holds_where_a_label_has_none() {
        let config = "append quiet\ndefault b\nlabel a\nlinux /k\nappend -\nlabel b\nlinux /k\n";
        let menu = read(&[(PATH, config)]);
        assert_eq!(menu.entries[0].id, "b");
        assert_eq!(by_id(&menu)["b"].args, "quiet");
        assert_eq!(by_id(&menu)["a"].args, "");
    }

    #[test]
    fn files_that_include_one_another_end() {
        let config = "include more.conf\nmenu include more.conf\n";
        let more = "label x\nlinux /k\ninclude extlinux.conf\n";
        let menu = read(&[(PATH, config), ("/boot/extlinux/more.conf", more)]);
        assert_eq!(menu.entries[0].kernel.path, "/k");
        assert!(menu.entries.len() <= MAX_FILES);
    }

    #[test]
    fn no_path_leads_out() {
        assert_eq!(resolve("/boot", "../../../etc/./x"), "/etc/x");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(?s)(label|linux|append|include|menu|default| |x|\n|/|,){0,80}") {
            let menu = read(&[(PATH, text.as_str())]);
            prop_assert!(menu.entries.len() <= MAX_LABELS);
        }
    }
}
