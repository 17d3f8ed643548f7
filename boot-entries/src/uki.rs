//! Unified kernel images (UAPI group): PE files whose sections hold kernel, initial image and
//! command line. Format: Microsoft's PE specification.

use crate::tree::{FileKind, FileTree};

/// Most sections of an image; real ones have some twenty.
const MAX_SECTIONS: usize = 96;
/// Longest text section.
const MAX_TEXT_LEN: usize = 64 << 10;
/// Length of a section header.
const SECTION_LEN: usize = 40;
/// Where the file says where its PE header is.
const PE_OFFSET_AT: usize = 0x3c;
/// IMAGE_FILE_MACHINE_AMD64.
const MACHINE_AMD64: u16 = 0x8664;

/// A part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// A unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uki {
    /// The kernel.
    pub linux: Section,
    /// Initial images, in order: microcode, then the image itself.
    pub initrds: Vec<Section>,
    /// Its command line.
    pub command_line: Option<String>,
    /// Its os-release file.
    pub os_release: Option<String>,
    /// The kernel's release.
    pub uname: Option<String>,
}

/// Why a file is no such image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UkiError {
    /// No regular file, or none that can be read.
    #[error("cannot be read")]
    Unreadable,
    /// No PE file.
    #[error("is no PE image")]
    NotPe,
    /// One for another processor.
    #[error("is an image for another processor")]
    Machine,
    /// One without a kernel: a boot loader.
    #[error("is an EFI program without a .linux section")]
    NoKernel,
    /// A section that lies outside of the file, or is too long.
    #[error("has a corrupt {0} section")]
    Corrupt(&'static str),
}

impl Uki {
    /// Reads the headers and texts of the image `path`.
    ///
    /// # Errors
    ///
    /// [`UkiError`].
    pub fn open(tree: &dyn FileTree, path: &str) -> Result<Self, UkiError> {
        let Some(FileKind::File(len)) = tree.kind(path) else {
            return Err(UkiError::Unreadable);
        };
        let image = Image { tree, path, len };
        let sections = image.sections()?;
        // What follows the first .profile section is another profile's.
        let base = sections.split(|(name, _)| name == b".profile");
        let base = base.into_iter().next().unwrap_or_default();
        let find = |name: &str| {
            let mut found = base.iter().filter(|(n, _)| n == name.as_bytes());
            found.next().map(|(_, section)| *section)
        };
        let part = |name: &'static str| {
            find(name)
                .map(|found| image.checked(found, name))
                .transpose()
        };
        let text =
            |name: &'static str| part(name)?.map(|found| image.text(found, name)).transpose();
        let initrds = [part(".ucode")?, part(".initrd")?];
        Ok(Self {
            linux: part(".linux")?.ok_or(UkiError::NoKernel)?,
            initrds: initrds.into_iter().flatten().collect(),
            command_line: text(".cmdline")?,
            os_release: text(".osrel")?,
            uname: text(".uname")?,
        })
    }

    /// A value of its os-release file.
    #[must_use]
    pub fn os_release(&self, key: &str) -> Option<String> {
        let text = self.os_release.as_deref()?;
        text.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix('=')?;
            Some(value.trim_matches(['"', '\'']).to_owned())
        })
    }
}

struct Image<'a> {
    tree: &'a dyn FileTree,
    path: &'a str,
    len: u64,
}

impl Image<'_> {
    /// Names and places of all sections.
    fn sections(&self) -> Result<Vec<(Vec<u8>, Section)>, UkiError> {
        let dos = self.read(0, PE_OFFSET_AT + 4)?;
        if !dos.starts_with(b"MZ") {
            return Err(UkiError::NotPe);
        }
        let pe = u64::from(u32_at(&dos, PE_OFFSET_AT).ok_or(UkiError::NotPe)?);
        // Signature and file header.
        let header = self.read(pe, 24)?;
        if !header.starts_with(b"PE\0\0") {
            return Err(UkiError::NotPe);
        }
        let (machine, count, optional_len) = (
            u16_at(&header, 4).ok_or(UkiError::NotPe)?,
            u16_at(&header, 6).ok_or(UkiError::NotPe)?,
            u16_at(&header, 20).ok_or(UkiError::NotPe)?,
        );
        if machine != MACHINE_AMD64 {
            return Err(UkiError::Machine);
        }
        let count = usize::from(count).min(MAX_SECTIONS);
        let table = self.read(pe + 24 + u64::from(optional_len), count * SECTION_LEN)?;
        Ok(table
            .chunks_exact(SECTION_LEN)
            .filter_map(section)
            .collect())
    }

    fn checked(&self, section: Section, name: &'static str) -> Result<Section, UkiError> {
        let end = section.offset.checked_add(section.len);
        match end {
            Some(end) if end <= self.len => Ok(section),
            _ => Err(UkiError::Corrupt(name)),
        }
    }

    fn text(&self, section: Section, name: &'static str) -> Result<String, UkiError> {
        let len = usize::try_from(section.len).unwrap_or(usize::MAX);
        if len > MAX_TEXT_LEN {
            return Err(UkiError::Corrupt(name));
        }
        let text = self.read(section.offset, len)?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.trim_matches(['\0', '\n', ' ']).to_owned())
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, UkiError> {
        let read = self.tree.read(self.path, offset, len);
        read.map_err(|_| UkiError::Unreadable)
    }
}

/// A section header: its name, and where its contents lie.
fn section(header: &[u8]) -> Option<(Vec<u8>, Section)> {
    let name = header.get(..8)?;
    let name_len = name.iter().position(|byte| *byte == 0).unwrap_or(8);
    // Contents are padded in the file, or zeros beyond it.
    let len = u32_at(header, 8)?.min(u32_at(header, 16)?);
    let section = Section {
        offset: u32_at(header, 20)?.into(),
        len: len.into(),
    };
    Some((name.get(..name_len)?.to_vec(), section))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryTree;
    use proptest::prelude::*;

    /// An image of these sections.
    fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..2].copy_from_slice(b"MZ");
        file[PE_OFFSET_AT] = 0x40;
        file.extend(b"PE\0\0\x64\x86");
        file.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
        file.extend([0; 16]);
        let mut offset = file.len() + sections.len() * SECTION_LEN;
        for (name, content) in sections {
            let mut header = [0; SECTION_LEN];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let len = u32::try_from(content.len()).unwrap().to_le_bytes();
            header[8..12].copy_from_slice(&len);
            header[16..20].copy_from_slice(&len);
            header[20..24].copy_from_slice(&u32::try_from(offset).unwrap().to_le_bytes());
            file.extend(header);
            offset += content.len();
        }
        sections
            .iter()
            .for_each(|(_, content)| file.extend(*content));
        file
    }

    fn open(file: &[u8]) -> Result<Uki, UkiError> {
        Uki::open(&MemoryTree::new(&[("/a.efi", file)]), "/a.efi")
    }

    #[test]
    fn the_sections_of_an_image_are_found() {
        let file = image(&[
            (".osrel", b"NAME=x\nPRETTY_NAME=\"Debian 13\"\n"),
            (".cmdline", b"root=/dev/vda2 quiet\n\0"),
            (".uname", b"6.12.57"),
            (".initrd", b"INITRD"),
            (".linux", b"KERNEL"),
            (".profile", b"ID=other"),
            (".cmdline", b"other"),
        ]);
        let uki = open(&file).unwrap();
        assert_eq!(uki.command_line.as_deref(), Some("root=/dev/vda2 quiet"));
        assert_eq!(uki.os_release("PRETTY_NAME").unwrap(), "Debian 13");
        let of = |section: Section| {
            let (start, len) = (
                usize::try_from(section.offset),
                usize::try_from(section.len),
            );
            &file[start.unwrap()..][..len.unwrap()]
        };
        assert_eq!(of(uki.linux), b"KERNEL");
        assert_eq!(of(uki.initrds[0]), b"INITRD");
    }

    #[test]
    fn what_is_no_image_says_why() {
        assert_eq!(open(b"\x7fELF").unwrap_err(), UkiError::NotPe);
        let loader = image(&[(".text", b"x")]);
        assert_eq!(open(&loader).unwrap_err(), UkiError::NoKernel);
        let mut cut = image(&[(".linux", &[7; 100])]);
        cut.truncate(cut.len() - 1);
        assert_eq!(open(&cut).unwrap_err(), UkiError::Corrupt(".linux"));
    }

    proptest! {
        #[test]
        fn no_damage_does_harm(at in 0..300_usize, byte: u8) {
            let mut file = image(&[(".cmdline", b"quiet"), (".linux", &[7; 100])]);
            if let Some(damaged) = file.get_mut(at) {
                *damaged = byte;
            }
            if let Ok(uki) = open(&file) {
                prop_assert!(uki.linux.offset + uki.linux.len <= file.len() as u64);
            }
        }
    }
}
