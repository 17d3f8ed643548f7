//! Initial images for guests of tests and benchmarks: archives in cpio's "new ASCII" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction.
#[derive(Default)]
pub struct InitialImage {
    bytes: Vec<u8>,
}

/// What an entry says of itself.
#[derive(Default)]
struct Entry<'a> {
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl InitialImage {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the folder `path`; parents come first.
    #[must_use]
    pub fn folder(self, path: &str) -> Self {
        let mode = FOLDER;
        self.append(
            path,
            &Entry {
                mode,
                ..Entry::default()
            },
        )
    }

    /// Adds an executable file.
    #[must_use]
    pub fn program(self, path: &str, content: &[u8]) -> Self {
        let mode = PROGRAM;
        self.append(
            path,
            &Entry {
                mode,
                content,
                ..Entry::default()
            },
        )
    }

    /// Adds a character device with its major and minor number.
    #[must_use]
    pub fn device(self, path: &str, device: (u32, u32)) -> Self {
        let mode = CHARACTER_DEVICE;
        self.append(
            path,
            &Entry {
                mode,
                device,
                ..Entry::default()
            },
        )
    }

    /// The archive.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.append(TRAILER, &Entry::default()).bytes
    }

    fn append(mut self, path: &str, entry: &Entry<'_>) -> Self {
        let (size, (major, minor)) = (entry.content.len(), entry.device);
        let (mode, name_len) = (entry.mode, path.len() + 1);
        // Inode, mode, owner, group, links, time, size, device, device's number, name, checksum.
        let header = format!(
            "070701{0:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}{minor:08x}{name_len:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(entry.content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_trailer_is_last() {
        let image = InitialImage::new()
            .folder("dev")
            .program("init", b"12345")
            .finish();
        assert_eq!(image.len() % 4, 0);
        let text = String::from_utf8(image).unwrap();
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.trim_end_matches('\0').ends_with(TRAILER));
        assert!(text.contains("12345\x00\x00\x00070701"));
    }
}
