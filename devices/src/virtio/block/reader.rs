//! Reads a disk from within this program, without a guest.

use std::io;

use super::backend::{DiskBackend, DiskOperation};
use super::iovecs::Iovecs;

/// Reads a disk, one piece after the other.
pub struct DiskReader(Box<dyn DiskBackend>);

impl DiskReader {
    /// A reader of `disk`, which nobody else uses.
    #[must_use]
    pub fn new(disk: Box<dyn DiskBackend>) -> Self {
        Self(disk)
    }

    /// Length of the disk in bytes.
    #[must_use]
    pub fn disk_len(&self) -> u64 {
        self.0.disk_len()
    }

    /// Fills `data` with what lies at `offset`, and waits for it. The caller bounds its length.
    ///
    /// # Errors
    /// What the disk says; `UnexpectedEof` beyond its end.
    pub fn read_at(&mut self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.disk_len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if data.is_empty() {
            return Ok(());
        }
        let buffers = Iovecs::zeros(data.len());
        let read = buffers.part(0, data.len() as u64);
        self.0.start(0, DiskOperation::Read { offset, buffers });
        let mut finished = Vec::new();
        loop {
            self.0.submit();
            self.0.take_completions(&mut finished);
            match finished.pop() {
                Some(completion) => {
                    completion.result?;
                    break;
                }
                None => self.0.wait()?,
            }
        }
        for (to, from) in data.iter_mut().zip(read.bytes()) {
            *to = from;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::virtio::block::image::{self, BackingFiles, ImageFormat, ImageOptions, ImageSource};

    fn reader(file: File) -> DiskReader {
        let source = ImageSource {
            file,
            format: ImageFormat::Raw,
            backing: BackingFiles::Refused,
        };
        DiskReader::new(image::open(source, ImageOptions::default()).unwrap())
    }

    #[test]
    fn what_lies_on_the_disk_is_read_and_nothing_beyond() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        file.write_all_at(b"somewhere", 5000).unwrap();
        let mut disk = reader(file);
        let mut data = [0; 9];
        disk.read_at(&mut data, 5000).unwrap();
        assert_eq!(&data, b"somewhere");
        let beyond = disk.read_at(&mut data, 8190).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        disk.read_at(&mut [], 8192).unwrap();
    }
}
