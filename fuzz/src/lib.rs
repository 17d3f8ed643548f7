//! What fuzz targets share: files in memory, and seeds that are made by code.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

/// The variable that names a folder for a target's seeds.
const SEEDS: &str = "PODVISOR_FUZZ_SEEDS";

/// A file in memory with these bytes.
pub fn file_of(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"image", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

/// Writes a target's seeds and ends the process, when that is what it was started for.
pub fn seeds(make: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(SEEDS) else {
        return;
    };
    for (number, seed) in make().into_iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).unwrap();
    }
    std::process::exit(0);
}
