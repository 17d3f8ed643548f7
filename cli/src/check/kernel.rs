//! What the host's kernel must offer besides KVM.

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::Check;

/// Modules that the pod network needs: what they are for.
const MODULES: [(&str, &str); 5] = [
    ("sch_ingress", "redirects a pod's traffic into its machine"),
    ("cls_matchall", "redirects a pod's traffic into its machine"),
    ("act_mirred", "redirects a pod's traffic into its machine"),
    ("cls_u32", "answers a machine that asks for its address"),
    ("act_gact", "answers a machine that asks for its address"),
];
/// Controllers that a pod's limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The first kernel with programs that look sockets up, and the file that a kernel with BPF has.
const SOCKET_LOOKUP_VERSION: (u32, u32) = (5, 9);
const BPF_FILE: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";

/// Devices, modules, control groups, programs.
pub fn checks() -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let has_bpf = Path::new(BPF_FILE).exists();
    let mut checks = vec![tun(), cgroups(), port_forwarding(release.trim(), has_bpf)];
    let folder = Path::new("/lib/modules").join(release.trim());
    let list = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let modules = Modules {
        built_in: list("modules.builtin"),
        loadable: list("modules.dep"),
    };
    checks.extend(
        MODULES
            .iter()
            .map(|(name, purpose)| modules.check(name, purpose)),
    );
    checks
}

fn tun() -> Check {
    let path = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::good("tun", path),
        Err(error) => Check::bad("tun", format!("{path}: {error}"), "modprobe tun"),
    }
}

fn cgroups() -> Check {
    let name = "control groups";
    let file = "/sys/fs/cgroup/cgroup.controllers";
    let Ok(controllers) = fs::read_to_string(file) else {
        return Check::bad(
            name,
            "no hierarchy of version 2 on /sys/fs/cgroup",
            "boot with systemd.unified_cgroup_hierarchy=1",
        );
    };
    let has = |name: &&&str| !controllers.split_whitespace().any(|word| word == **name);
    let missing: Vec<&str> = CONTROLLERS.iter().filter(has).copied().collect();
    match missing.is_empty() {
        true => Check::good(name, format!("version 2, with {}", CONTROLLERS.join(", "))),
        false => Check::bad(
            name,
            format!("version 2, without {}", missing.join(", ")),
            "remove cgroup_disable and cgroup_no_v1 from the kernel's command line",
        ),
    }
}

/// Whether connections made in a pod's network namespace can be led to its machine.
fn port_forwarding(release: &str, has_bpf: bool) -> Check {
    let name = "port forwarding";
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or_default());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    if version >= SOCKET_LOOKUP_VERSION && has_bpf {
        return Check::good(name, format!("Linux {release} with BPF"));
    }
    let with = if has_bpf { "" } else { " without BPF" };
    Check::bad(
        name,
        format!("Linux {release}{with}"),
        "use Linux 5.9 or later with CONFIG_BPF_SYSCALL: kubectl port-forward needs it",
    )
}

/// What a kernel has, as its module folder lists it.
struct Modules {
    built_in: String,
    loadable: String,
}

impl Modules {
    fn check(&self, name: &str, purpose: &str) -> Check {
        let title = format!("kernel: {name}");
        let file = |line: &str| {
            let path = line.split(':').next().unwrap_or(line);
            let file = path.rsplit('/').next().unwrap_or(path);
            file.split(".ko").next().unwrap_or(file).replace('-', "_") == name
        };
        if Path::new("/sys/module").join(name).exists() {
            Check::good(title, "loaded")
        } else if self.built_in.lines().any(file) {
            Check::good(title, "built in")
        } else if self.loadable.lines().any(file) {
            Check::good(title, "loadable")
        } else {
            let remedy = format!("use a kernel with it: it {purpose}");
            Check::bad(title, "neither loaded nor in /lib/modules", remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_and_one_without_bpf_forward_no_ports() {
        assert!(port_forwarding("6.12.48+deb13-amd64", true).ok);
        assert!(port_forwarding("5.9.0", true).ok);
        for (release, has_bpf) in [("5.8.18", true), ("4.19.0-27", true), ("6.1.0", false)] {
            assert!(!port_forwarding(release, has_bpf).ok, "{release}");
        }
    }

    #[test]
    fn a_module_is_found_by_its_file() {
        let modules = Modules {
            built_in: "kernel/net/sched/not-there.ko\n".into(),
            loadable: "kernel/net/sched/also_not-there.ko.xz: kernel/lib/x.ko.xz\n".into(),
        };
        assert_eq!(modules.check("not_there", "").found, "built in");
        assert_eq!(modules.check("also_not_there", "").found, "loadable");
        assert!(!modules.check("x", "").ok);
    }
}
