//! Kernel settings under /proc/sys.

use std::fs::File;
use std::io::{self, Write as _};

/// Where they lie.
const ROOT: &str = "/proc/sys";

/// Writes one setting of the calling process's namespaces.
///
/// # Errors
///
/// InvalidInput for a name that would leave /proc/sys, else what the kernel said.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    let path = path_of(name)?;
    File::options()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// `net.ipv4.ip_forward` as a path. As with sysctl(8), a name whose first
/// separator is a slash uses slashes, and dots belong to the components.
fn path_of(name: &str) -> io::Result<String> {
    let slashes_first = name
        .find(['.', '/'])
        .is_some_and(|at| name.get(at..=at) == Some("/"));
    let relative = if slashes_first {
        name.to_owned()
    } else {
        swap_separators(name)
    };
    let component = |part: &str| !part.is_empty() && part != "." && part != "..";
    if relative.split('/').all(component) {
        Ok(format!("{ROOT}/{relative}"))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a setting",
        ))
    }
}

fn swap_separators(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_setting() {
        let path = "/proc/sys/net/ipv4/conf/eth0.100/forwarding";
        assert_eq!(path_of("net.ipv4.conf.eth0/100.forwarding").unwrap(), path);
        assert_eq!(path_of("net/ipv4/conf/eth0.100/forwarding").unwrap(), path);
    }

    #[test]
    fn a_name_never_leaves_the_directory() {
        for name in [
            "",
            "net/../../../etc/passwd",
            "kernel..x",
            "/etc/passwd",
            "..",
            "a//b",
        ] {
            assert!(path_of(name).is_err(), "{name}");
        }
    }
}
