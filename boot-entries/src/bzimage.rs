//! What a file that is called a kernel is (Documentation/arch/x86/boot.rst).

/// Bytes of a file that are looked at: the real-mode code holds the kernel's release.
pub const HEADER_LEN: usize = 64 << 10;

const BOOT_FLAG_AT: usize = 0x1fe;
const MAGIC_AT: usize = 0x202;
const VERSION_AT: usize = 0x206;
const RELEASE_AT: usize = 0x20e;
const XLOADFLAGS_AT: usize = 0x236;
/// The pointer to the release is relative to this.
const RELEASE_BASE: usize = 0x200;
/// First version of the protocol that has `xloadflags`.
const WITH_XLOADFLAGS: u16 = 0x020c;
/// XLF_KERNEL_64
const IS_64_BIT: u16 = 1;
/// XLF_CAN_BE_LOADED_ABOVE_4G
const IS_LOADED_ANYWHERE: u16 = 2;
/// Longest release that is shown.
const MAX_RELEASE_LEN: usize = 128;

/// Why a file cannot be started as a kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KernelError {
    /// Another kind of file, as far as it is known.
    #[error("is not a bzImage{0}")]
    NotBzImage(&'static str),
    /// A kernel for 32-bit processors, or too old.
    #[error("is a bzImage without a 64-bit entry")]
    Not64Bit,
    /// A kernel that kexec refuses, for it does not say that it can be loaded anywhere.
    #[error("is a bzImage that cannot be loaded above 4 GiB, which kexec asks for")]
    NotAbove4G,
}

/// The kernel's release (`uname -r`), as its header tells; empty when it does not.
///
/// # Errors
///
/// [`KernelError`].
pub fn release(header: &[u8]) -> Result<String, KernelError> {
    let is_bzimage = header.get(BOOT_FLAG_AT..BOOT_FLAG_AT + 2) == Some(&[0x55, 0xaa])
        && header.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS");
    if !is_bzimage {
        return Err(KernelError::NotBzImage(kind_of(header)));
    }
    let version = u16_at(header, VERSION_AT);
    let flags = u16_at(header, XLOADFLAGS_AT);
    if version < WITH_XLOADFLAGS || flags & IS_64_BIT == 0 {
        return Err(KernelError::Not64Bit);
    }
    if flags & IS_LOADED_ANYWHERE == 0 {
        return Err(KernelError::NotAbove4G);
    }
    let start = usize::from(u16_at(header, RELEASE_AT)) + RELEASE_BASE;
    let text = header.get(start..).unwrap_or_default();
    let text = text.get(..MAX_RELEASE_LEN).unwrap_or(text);
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_graphic())
        .unwrap_or(text.len());
    let release = String::from_utf8_lossy(text.get(..end).unwrap_or_default());
    Ok(if start == RELEASE_BASE {
        String::new()
    } else {
        release.into_owned()
    })
}

fn kind_of(header: &[u8]) -> &'static str {
    match header {
        [] => ", for it is empty",
        [0x7f, b'E', b'L', b'F', ..] => ", but an ELF file",
        [0x1f, 0x8b, ..] => ", but compressed with gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ", but compressed with zstd",
        [b'M', b'Z', ..] => ", but an EFI program",
        [b'#', b'!', ..] => ", but a script",
        _ => "",
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Vec<u8> {
        let mut header = vec![0; 0x4000];
        header[BOOT_FLAG_AT..BOOT_FLAG_AT + 2].copy_from_slice(&[0x55, 0xaa]);
        header[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        header[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        header[RELEASE_AT..RELEASE_AT + 2].copy_from_slice(&0x3000_u16.to_le_bytes());
        header[XLOADFLAGS_AT] = 0x3f;
        header[0x3200..0x3210].copy_from_slice(b"6.12.57 (builder");
        header
    }

    #[test]
    fn a_kernel_says_its_release() {
        assert_eq!(release(&header()).unwrap(), "6.12.57");
    }

    #[test]
    fn other_files_are_named() {
        for (file, expected) in [
            (&b""[..], "is not a bzImage, for it is empty"),
            (b"\x7fELF\x02", "is not a bzImage, but an ELF file"),
            (b"hello", "is not a bzImage"),
        ] {
            assert_eq!(release(file).unwrap_err().to_string(), expected);
        }
        let mut old = header();
        old[XLOADFLAGS_AT] = 0;
        assert_eq!(release(&old), Err(KernelError::Not64Bit));
        let mut fixed = header();
        fixed[XLOADFLAGS_AT] = 0x21;
        assert_eq!(release(&fixed), Err(KernelError::NotAbove4G));
    }

    proptest! {
        #[test]
        fn any_pointer_is_harmless(pointer: u16, len in 0..0x4000_usize) {
            let mut header = header();
            header[RELEASE_AT..RELEASE_AT + 2].copy_from_slice(&pointer.to_le_bytes());
            header.truncate(len);
            let _ = release(&header);
        }
    }
}
