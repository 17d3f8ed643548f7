//! From a descriptor chain to its FUSE answer.
//!
//! The library's server decodes most operations; the few it does not know and a guest's kernel
//! makes use of are decoded here.

use std::io::{self, Write};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader, WriteOut};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, ByteValued, Bytes, GuestMemoryMmap};

use super::exports::{Exports, Tree};

/// One request of the driver.
pub(super) type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap<()>>;

/// Operations of linux/fuse.h that the library answers with ENOSYS.
const COPY_FILE_RANGE: u32 = 47;
const SYNCFS: u32 = 50;
/// Where the operation's number is in a request's header, in bytes.
const OPCODE_OFFSET: u64 = 4;

/// Answers requests about one tree.
pub(super) struct FuseServer {
    server: Server<Arc<Tree>>,
    tree: Arc<Tree>,
}

impl FuseServer {
    /// A server of what `exports` hold.
    pub fn new(exports: &Exports) -> Self {
        let tree = exports.tree();
        Self {
            server: Server::new(Arc::clone(&tree)),
            tree,
        }
    }

    /// Lets go of all that the guest knows and has open.
    pub fn forget_guest(&self) {
        self.tree.forget_guest();
    }

    /// Has a request answered into its buffers; how many bytes the answer has.
    pub fn answer(&self, memory: &GuestMemoryMmap<()>, chain: Chain<'_>) -> u32 {
        let buffers = (
            Reader::from_descriptor_chain(memory, chain.clone()),
            VirtioFsWriter::new(memory, chain.clone()),
        );
        let (Ok(reader), Ok(writer)) = buffers else {
            return 0;
        };
        // The guest may change the number afterwards and gets the other decoding then.
        let answered = match opcode(memory, chain.clone()) {
            Some(COPY_FILE_RANGE) => reply(reader, writer, |body| self.copy_range(body)),
            Some(SYNCFS) => reply(reader, writer, |_| {
                self.tree.sync_exports().map(|()| Vec::new())
            }),
            _ => {
                let handled =
                    self.server
                        .handle_message(reader, Writer::VirtioFs(writer), None, None);
                handled.ok().and_then(|written| u32::try_from(written).ok())
            }
        };
        answered.or_else(|| refuse(memory, chain)).unwrap_or(0)
    }

    /// FUSE_COPY_FILE_RANGE: `struct fuse_copy_file_range_in`, seven words.
    fn copy_range(&self, body: &mut Reader<'_>) -> io::Result<Vec<u8>> {
        let [from, from_offset, _node, to, to_offset, len, flags] = body.read_obj::<[u64; 7]>()?;
        if flags != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let copied = self
            .tree
            .copy_file_range((from, from_offset), (to, to_offset), len)?;
        let answer = WriteOut {
            size: copied,
            ..WriteOut::default()
        };
        Ok(answer.as_slice().to_vec())
    }
}

/// The number of a request's operation, as it stands in guest memory now.
fn opcode(memory: &GuestMemoryMmap<()>, mut chain: Chain<'_>) -> Option<u32> {
    let first = chain.next()?;
    if u64::from(first.len()) < OPCODE_OFFSET + 4 {
        return None;
    }
    memory
        .read_obj(first.addr().checked_add(OPCODE_OFFSET)?)
        .ok()
}

/// Decodes a request's header, does the rest by `serve` and writes the answer.
fn reply(
    mut reader: Reader<'_>,
    mut writer: VirtioFsWriter<'_>,
    serve: impl FnOnce(&mut Reader<'_>) -> io::Result<Vec<u8>>,
) -> Option<u32> {
    let header: InHeader = reader.read_obj().ok()?;
    let (error, body) = match serve(&mut reader) {
        Ok(body) => (0, body),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
    };
    let len = u32::try_from(size_of::<OutHeader>() + body.len()).ok()?;
    let answer = OutHeader {
        len,
        error,
        unique: header.unique,
    };
    writer.write_all(answer.as_slice()).ok()?;
    writer.write_all(&body).ok()?;
    Some(len)
}

/// Answers a message that is no FUSE request with EIO, where it has a header and room at all, so
/// that whoever waits for it in the guest goes on.
fn refuse(memory: &GuestMemoryMmap<()>, chain: Chain<'_>) -> Option<u32> {
    let reader = Reader::from_descriptor_chain(memory, chain.clone()).ok()?;
    let writer = VirtioFsWriter::new(memory, chain).ok()?;
    reply(reader, writer, |_| {
        Err(io::Error::from_raw_os_error(libc::EIO))
    })
}
