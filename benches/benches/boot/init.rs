//! An initial image whose init does one thing: it writes the byte that ends the measurement.

use std::arch::global_asm;

use podvisor_tests::InitialImage;

// Linux system calls by number (arch/x86/entry/syscalls/syscall_64.tbl). The code is copied, so
// that it must not depend on where it lies.
global_asm!(
    ".pushsection .rodata",
    "boot_init_start:",
    // open("/dev/port", O_WRONLY)
    "lea rdi, [rip + 2f]",
    "mov esi, 1",
    "mov eax, 2",
    "syscall",
    // pwrite64(port, &0xa5, 1, 0x3f8): the data register of the first serial port
    "mov edi, eax",
    "lea rsi, [rip + 3f]",
    "mov edx, 1",
    "mov r10d, 0x3f8",
    "mov eax, 18",
    "syscall",
    // reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART)
    "mov edi, 0xfee1dead",
    "mov esi, 672274793",
    "mov edx, 0x1234567",
    "mov eax, 169",
    "syscall",
    "4: jmp 4b",
    "2: .asciz \"/dev/port\"",
    "3: .byte 0xa5",
    "boot_init_end:",
    ".popsection",
);

unsafe extern "C" {
    static boot_init_start: u8;
    static boot_init_end: u8;
}

/// Where the program is loaded; any address of the lower half does.
const ADDRESS: u64 = 0x40_0000;
/// ELF header and one program header (System V ABI, chapters 4 and 5).
const HEADERS_LEN: u64 = 64 + 56;
const READABLE_EXECUTABLE: u32 = 5;

/// The image: the program as `/init`, and the device that it opens.
pub fn image() -> Vec<u8> {
    let image = InitialImage::new()
        .folder("dev")
        .device("dev/console", (5, 1));
    image
        .device("dev/port", (1, 4))
        .program("init", &program())
        .finish()
}

fn program() -> Vec<u8> {
    let (start, end) = (&raw const boot_init_start, &raw const boot_init_end);
    // SAFETY: Both are labels of one section, and the second stands behind the first.
    let len = unsafe { end.offset_from_unsigned(start) };
    // SAFETY: What is between them is data that nobody writes.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    let file_len = HEADERS_LEN + code.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable for x86-64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry, offset of the program header, offset of the section headers, flags.
    file.extend(
        [ADDRESS + HEADERS_LEN, 64, 0]
            .iter()
            .flat_map(|field| field.to_le_bytes()),
    );
    file.extend(0_u32.to_le_bytes());
    // Size of this header, size and number of program headers, none of section headers.
    file.extend(
        [64_u16, 56, 1, 64, 0, 0]
            .iter()
            .flat_map(|field| field.to_le_bytes()),
    );
    // One loadable segment: the whole file.
    file.extend(
        [1, READABLE_EXECUTABLE]
            .iter()
            .flat_map(|field: &u32| field.to_le_bytes()),
    );
    let fields = [0, ADDRESS, ADDRESS, file_len, file_len, 0x1000];
    file.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    file.extend(code);
    file
}
