//! The guest's pools of huge pages: as many pages as the limits of its containers come to, and
//! more on demand for volumes of them.
//!
//! A machine boots without any. They are taken from its free memory, so that a pod's memory limits
//! have to hold them as well.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::HugepageLimit;

/// One folder a page size (Documentation/admin-guide/mm/hugetlbpage.rst).
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// Why a container does not get its huge pages.
#[derive(Debug, thiserror::Error)]
pub enum HugePageError {
    /// No such pages.
    #[error("linux.resources.hugepageLimits: the VM has no pages of {0}")]
    Size(String),
    /// Not enough memory in one piece.
    #[error(
        "linux.resources.hugepageLimits: of {wanted} pages of {size} the VM can have {found}; they \
         are part of the pod's memory limits"
    )]
    Memory {
        /// How many.
        wanted: u64,
        /// Of which size.
        size: String,
        /// How many there could be.
        found: u64,
    },
    /// A file of sysfs could not be read or written.
    #[error("{path}")]
    Sysfs {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Pages that were taken from free memory for a container; dropping gives them back.
#[derive(Debug, Default)]
pub struct HugePages {
    /// Files with pools' lengths, and how many pages of each are this container's.
    taken: Vec<(PathBuf, u64)>,
}

impl HugePages {
    /// Takes what `limits` allow.
    ///
    /// # Errors
    ///
    /// [`HugePageError`]; nothing is taken then.
    pub fn take(limits: &[HugepageLimit]) -> Result<Self, HugePageError> {
        Self::take_in(Path::new(POOLS), limits)
    }

    fn take_in(pools: &Path, limits: &[HugepageLimit]) -> Result<Self, HugePageError> {
        let mut pages = Self::default();
        for HugepageLimit { page_size, limit } in limits {
            let unknown = || HugePageError::Size(page_size.clone());
            let page_kib = kib(page_size).ok_or_else(unknown)?;
            let count = limit / (page_kib << 10);
            if count == 0 {
                continue;
            }
            let file = pools.join(format!("hugepages-{page_kib}kB/nr_hugepages"));
            if !file.exists() {
                return Err(unknown());
            }
            let found = grow(&file, count)?;
            pages.taken.push((file, found));
            if found < count {
                return Err(HugePageError::Memory {
                    wanted: count,
                    size: page_size.clone(),
                    found,
                });
            }
        }
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        for (file, count) in &self.taken {
            // Pages in use leave the pool when they are freed.
            let less = length(file).map(|pages| pages.saturating_sub(*count));
            let _ = less.and_then(|pages| set_length(file, pages));
        }
    }
}

/// Lets the pool of pages of so many bytes grow as they are used. By default containerd withholds
/// the limits of containers; then a volume is all that tells of their pages. Pages of 1 GiB are
/// never made on demand: those need a limit.
///
/// # Errors
///
/// [`HugePageError::Sysfs`].
pub fn allow_on_demand(page_bytes: u64) -> Result<(), HugePageError> {
    let pool = format!("hugepages-{}kB", page_bytes >> 10);
    let file = Path::new(POOLS).join(pool).join("nr_overcommit_hugepages");
    match set_length(&file, u64::MAX) {
        Err(HugePageError::Sysfs { source, .. })
            if source.kind() == io::ErrorKind::InvalidInput =>
        {
            Ok(())
        }
        set => set,
    }
}

/// Makes a pool larger and tells by how many pages: the kernel takes what it can.
fn grow(file: &Path, count: u64) -> Result<u64, HugePageError> {
    let before = length(file)?;
    set_length(file, before.saturating_add(count))?;
    Ok(length(file)?.saturating_sub(before))
}

fn length(file: &Path) -> Result<u64, HugePageError> {
    let text = fs::read_to_string(file).map_err(failed(file))?;
    let pages = text.trim().parse();
    pages.map_err(|_| failed(file)(io::ErrorKind::InvalidData.into()))
}

fn set_length(file: &Path, pages: u64) -> Result<(), HugePageError> {
    fs::write(file, pages.to_string()).map_err(failed(file))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> HugePageError {
    let path = path.to_owned();
    move |source| HugePageError::Sysfs { path, source }
}

/// A page size as cgroups name it, in KiB.
fn kib(size: &str) -> Option<u64> {
    let (number, shift) = match size.split_at_checked(size.len().checked_sub(2)?)? {
        (number, "KB") => (number, 0),
        (number, "MB") => (number, 10),
        (number, "GB") => (number, 20),
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number
        .checked_mul(1 << shift)
        .filter(|kib| (4..=1 << 30).contains(kib))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(page_size: &str, limit: u64) -> [HugepageLimit; 1] {
        [HugepageLimit {
            page_size: page_size.to_owned(),
            limit,
        }]
    }

    fn pools() -> (tempfile::TempDir, PathBuf) {
        let pools = tempfile::tempdir().unwrap();
        fs::create_dir(pools.path().join("hugepages-2048kB")).unwrap();
        let file = pools.path().join("hugepages-2048kB/nr_hugepages");
        fs::write(&file, "1\n").unwrap();
        (pools, file)
    }

    #[test]
    fn a_pool_grows_by_a_containers_limit_and_shrinks_with_its_end() {
        let (pools, file) = pools();
        let pages = HugePages::take_in(pools.path(), &limits("2MB", 8 << 20)).unwrap();
        assert_eq!(length(&file).unwrap(), 5);
        drop(pages);
        assert_eq!(length(&file).unwrap(), 1);
    }

    #[test]
    fn no_limit_takes_nothing_and_an_unknown_size_is_named() {
        let (pools, file) = pools();
        HugePages::take_in(pools.path(), &limits("1GB", 0)).unwrap();
        let error = HugePages::take_in(pools.path(), &limits("1GB", 1 << 30)).unwrap_err();
        assert!(error.to_string().contains("1GB"), "{error}");
        assert_eq!(length(&file).unwrap(), 1);
    }

    #[test]
    fn page_sizes_are_the_cgroups() {
        assert_eq!(kib("2MB"), Some(2048));
        assert_eq!(kib("1GB"), Some(1 << 20));
        assert_eq!(kib("64KB"), Some(64));
        for wrong in ["", "MB", "2mb", "2M", "0KB", "99999999999999999999GB", "öB"] {
            assert_eq!(kib(wrong), None, "{wrong}");
        }
    }
}
