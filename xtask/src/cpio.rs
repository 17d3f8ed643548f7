//! Writes cpio archives of the "newc" kind, which Linux unpacks as its initial root.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst in Linux. Owners are root, times are zero and inode numbers
//! count up, so the same content gives the same bytes.

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in the making.
pub struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            next_inode: 1,
        }
    }

    /// Adds a folder; `name` has no leading slash.
    ///
    /// # Errors
    /// Never for a short name.
    pub fn directory(&mut self, name: &str, mode: u32) -> Result<()> {
        self.entry(name.as_bytes(), DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// `content` has 4 GiB or more.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(name.as_bytes(), REGULAR | mode, (0, 0), content)
    }

    /// Adds a character device node.
    ///
    /// # Errors
    /// Never for a short name.
    pub fn character_device(&mut self, name: &str, mode: u32, device: (u32, u32)) -> Result<()> {
        self.entry(name.as_bytes(), CHARACTER | mode, device, &[])
    }

    /// Ends the archive and returns its bytes.
    ///
    /// # Errors
    /// Never for an archive of fewer than 2^32 entries.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(b"TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &[u8], mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let content_len = u32::try_from(content.len()).context("a file of 4 GiB or more")?;
        let name_len = u32::try_from(name.len() + 1)?;
        // inode, mode, uid, gid, links, time, size, device of the file (2), device that it stands for (2), name, checksum
        let fields = [
            self.next_inode,
            mode,
            0,
            0,
            links,
            0,
            content_len,
            0,
            0,
            device.0,
            device.1,
            name_len,
            0,
        ];
        self.next_inode += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn listed_by_cpio(archive: &[u8]) -> String {
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(archive).unwrap();
        String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).unwrap();
        archive
            .character_device("dev/console", 0o600, (5, 1))
            .unwrap();
        archive.file("init", 0o755, b"odd").unwrap();
        let listed = listed_by_cpio(&archive.finish().unwrap());
        let lines: Vec<&str> = listed.lines().collect();
        assert!(lines[0].starts_with("drwxr-xr-x   2 0        0"));
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"));
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with("init"));
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let build = || {
            let mut archive = Archive::new();
            archive.file("init", 0o755, &[7; 100]).unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(build(), build());
        assert_eq!(build().len() % 4, 0);
    }
}
