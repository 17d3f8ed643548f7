//! What makes machines faster or larger, and pods run without. Nothing else than these and what every
//! pod needs is wanted for a machine pod: containerd needs no setting of its own for them.

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::Check;

const VHOST_NET: &str = "/dev/vhost-net";
const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";
/// Sizes that the annotation `hugepages` has, with their folders.
const SIZES: [(&str, &str); 2] = [("2Mi", "hugepages-2048kB"), ("1Gi", "hugepages-1048576kB")];

/// vhost-net, io_uring, huge pages.
pub fn checks() -> Vec<Check> {
    let vhost_net = OpenOptions::new().read(true).write(true).open(VHOST_NET);
    let switch = fs::read_to_string(IO_URING_DISABLED).unwrap_or_default();
    vec![
        network(vhost_net.map(drop).map_err(|error| error.to_string())),
        disks(switch.trim()),
        huge_pages(Path::new(HUGE_PAGES)),
    ]
}

fn network(opened: Result<(), String>) -> Check {
    match opened {
        Ok(()) => Check::good("vhost-net", VHOST_NET),
        Err(error) => Check::warning(
            "vhost-net",
            format!("{VHOST_NET}: {error}"),
            "modprobe vhost_net: without it a pod's server moves its frames itself",
        ),
    }
}

/// `switch` is what the kernel's has; kernels before 6.6 have none, and let everybody.
fn disks(switch: &str) -> Check {
    let name = "io_uring";
    match switch {
        "2" => Check::bad(
            name,
            "kernel.io_uring_disabled is 2",
            "sysctl kernel.io_uring_disabled=1: disks need it",
        ),
        "1" => Check::good(name, "for privileged processes"),
        _ => Check::good(name, "for all processes"),
    }
}

fn huge_pages(folder: &Path) -> Check {
    let pool = |(size, name): (&str, &str)| {
        let read = |file: &str| {
            let text = fs::read_to_string(folder.join(name).join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        match (read("free_hugepages"), read("nr_hugepages")) {
            (Some(free), Some(all)) => format!("{size}: {free} of {all} free"),
            _ => format!("{size}: none"),
        }
    };
    Check::good("huge pages", SIZES.map(pool).join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_vhost_net_is_told_and_good_enough() {
        assert!(network(Ok(())).remedy.is_empty());
        let check = network(Err("No such file or directory".to_owned()));
        assert!(check.ok && check.remedy.contains("vhost_net"), "{check:?}");
    }

    #[test]
    fn only_a_kernel_that_lets_nobody_is_bad() {
        assert!(disks("").ok && disks("0").ok && disks("1").ok);
        assert!(!disks("2").ok);
    }

    #[test]
    fn pools_are_counted_by_size() {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path().join("hugepages-2048kB");
        fs::create_dir(&pool).unwrap();
        fs::write(pool.join("free_hugepages"), "3\n").unwrap();
        fs::write(pool.join("nr_hugepages"), "8\n").unwrap();
        let check = huge_pages(folder.path());
        assert_eq!(check.found, "2Mi: 3 of 8 free, 1Gi: none");
    }
}
