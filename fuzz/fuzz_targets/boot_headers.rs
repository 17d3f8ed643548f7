//! Any bytes as what the boot stage reads of a device or a file: superblocks, partition tables,
//! LVM's label and metadata, kernels, unified images, module lists.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podvisor_boot_entries::lvm::{VolumeGroup, physical_volume};
use podvisor_boot_entries::modules::Modules;
use podvisor_boot_entries::partitions::Table;
use podvisor_boot_entries::testing::MemoryTree;
use podvisor_boot_entries::uki::Uki;
use podvisor_boot_entries::{bzimage, compare_versions, superblock};
use podvisor_fuzz::seeds;

fuzz_target!(init: seeds(headers), |data: &[u8]| {
    let read = |offset: u64, len: usize| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = data.get(start..).unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest).to_vec())
    };
    let _ = superblock::identify(data).to_string();
    let table = Table::of(data);
    for number in [0, 1, 128, u32::MAX] {
        let _ = table.partition_uuid(number, &read);
    }
    if let Ok(volume) = physical_volume(&read) {
        let _ = VolumeGroup::parse(&volume.metadata);
    }
    let _ = bzimage::release(data);
    if let Ok(image) = Uki::open(&MemoryTree::new(&[("/a.efi", data)]), "/a.efi") {
        let len = data.len() as u64;
        for section in image.initrds.iter().chain([&image.linux]) {
            assert!(section.offset + section.len <= len);
        }
        let _ = image.os_release("ID");
    }
    let text = String::from_utf8_lossy(data);
    let _ = VolumeGroup::parse(&text);
    let _ = Modules::parse(&text, "").order("virtiofs");
    let half = text.len() / 2;
    if let Some((left, right)) = text.split_at_checked(half) {
        let order = compare_versions(left, right);
        assert_eq!(order, compare_versions(right, left).reverse());
    }
});

/// One of each kind.
fn headers() -> Vec<Vec<u8>> {
    let mut pe = vec![0; 0x40];
    pe[..2].copy_from_slice(b"MZ");
    pe[0x3c] = 0x40;
    pe.extend(b"PE\0\0\x64\x86\x02\0");
    pe.extend([0; 16]);
    for name in [b".linux\0\0", b".cmdline"] {
        pe.extend(name);
        for field in [4_u32, 0, 4, 0xa8] {
            pe.extend(field.to_le_bytes());
        }
        pe.extend([0; 16]);
    }
    pe.extend(b"abcd");
    let mut gpt = vec![0; 2048];
    gpt[512..520].copy_from_slice(b"EFI PART");
    gpt[584] = 2;
    gpt[592] = 4;
    gpt[596] = 128;
    let mut lvm = vec![0; 8192];
    lvm[512..520].copy_from_slice(b"LABELONE");
    lvm[532] = 32;
    lvm[536..544].copy_from_slice(b"LVM2 001");
    lvm[586] = 1;
    lvm[617] = 0x10;
    lvm[4100..4116].copy_from_slice(b" LVM2 x[5A%r0N*>");
    lvm[4129] = 8;
    lvm[4137] = 2;
    lvm[4144] = 64;
    let metadata =
        b"vg { id = \"a-b\" seqno = 1 extent_size = 8192 physical_volumes { pv0 { id = \"p\" \
        pe_start = 2048 } } logical_volumes { root { id = \"l\" status = [\"VISIBLE\"] segment1 { \
        start_extent = 0 extent_count = 1 type = \"striped\" stripes = [ \"pv0\", 0 ] } } } }";
    vec![
        pe,
        gpt,
        lvm,
        metadata.to_vec(),
        b"kernel/virtiofs.ko: kernel/fuse.ko\nkernel/fuse.ko:\n".to_vec(),
    ]
}
