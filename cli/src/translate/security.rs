//! Users, capabilities, profiles and namespaces (pkg/kubelet/kuberuntime/security_context.go of
//! Kubernetes).

use std::path::Path;

use podvisor_proto::cri::v1::security_profile::ProfileType;
use podvisor_proto::cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SecurityProfile,
};

use super::TranslateError;
use super::container::ImageUser;
use crate::manifest::container::{Container, SeccompKind, SeccompProfile};
use crate::manifest::pod::PodSpec;

/// Where the kubelet looks for seccomp profiles of kind Localhost.
const SECCOMP_FOLDER: &str = "/var/lib/kubelet/seccomp";

/// Paths that containers cannot look into (pkg/securitycontext/util.go of Kubernetes).
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// Paths that containers cannot write to.
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Security settings of the pod itself.
pub fn of_sandbox(spec: &PodSpec) -> Result<LinuxSandboxSecurityContext, TranslateError> {
    let pod = &spec.security_context;
    let containers = || spec.containers.iter().chain(&spec.init_containers);
    Ok(LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        run_as_user: pod.run_as_user.map(int64),
        run_as_group: pod
            .run_as_group
            .filter(|_| pod.run_as_user.is_some())
            .map(int64),
        supplemental_groups: groups(spec),
        privileged: containers().any(|container| container.security_context.privileged),
        // The sandbox's own process is ours, and gets the runtime's profile as from the kubelet.
        seccomp: Some(profile(ProfileType::RuntimeDefault)),
        ..LinuxSandboxSecurityContext::default()
    })
}

/// Security settings of a container, its image's user known.
pub fn of_container(
    spec: &PodSpec,
    container: &Container,
    image_user: &ImageUser,
) -> Result<LinuxContainerSecurityContext, TranslateError> {
    let (pod, own) = (&spec.security_context, &container.security_context);
    let user = own.run_as_user.or(pod.run_as_user);
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        refuse_root(container, user, image_user)?;
    }
    let (run_as_user, run_as_username) = match (user, image_user) {
        (Some(uid), _) => (Some(int64(uid)), String::new()),
        (None, ImageUser::Uid(uid)) => (Some(Int64Value { value: *uid }), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
    };
    let masked = if own.privileged {
        &[][..]
    } else {
        &MASKED_PATHS[..]
    };
    let readonly = if own.privileged {
        &[][..]
    } else {
        &READONLY_PATHS[..]
    };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: own.capabilities.add.clone(),
            drop_capabilities: own.capabilities.drop.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(spec)),
        run_as_user,
        run_as_username,
        run_as_group: own.run_as_group.or(pod.run_as_group).map(int64),
        readonly_rootfs: own.read_only_root_filesystem,
        supplemental_groups: groups(spec),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: masked.iter().map(|path| (*path).to_owned()).collect(),
        readonly_paths: readonly.iter().map(|path| (*path).to_owned()).collect(),
        seccomp: Some(seccomp(
            own.seccomp_profile
                .as_ref()
                .or(pod.seccomp_profile.as_ref()),
        )?),
        ..LinuxContainerSecurityContext::default()
    })
}

fn refuse_root(
    container: &Container,
    user: Option<u32>,
    image_user: &ImageUser,
) -> Result<(), TranslateError> {
    let why = match (user, image_user) {
        (Some(0), _) => "runAsUser is 0".to_owned(),
        (None, ImageUser::Uid(0)) => "the image runs as root".to_owned(),
        (None, ImageUser::Name(name)) => {
            format!("the image's user {name} is not a number, so it cannot be told")
        }
        _ => return Ok(()),
    };
    Err(TranslateError::Root {
        container: container.name.to_string(),
        why,
    })
}

fn namespaces(spec: &PodSpec) -> NamespaceOption {
    let node_or = |node: bool, other: NamespaceMode| {
        i32::from(if node { NamespaceMode::Node } else { other })
    };
    let pid = if spec.share_process_namespace {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        ..NamespaceOption::default()
    }
}

fn groups(spec: &PodSpec) -> Vec<i64> {
    let pod = &spec.security_context;
    pod.fs_group
        .iter()
        .chain(&pod.supplemental_groups)
        .copied()
        .map(i64::from)
        .collect()
}

fn int64(value: u32) -> Int64Value {
    Int64Value {
        value: i64::from(value),
    }
}

fn profile(profile_type: ProfileType) -> SecurityProfile {
    SecurityProfile {
        profile_type: profile_type.into(),
        localhost_ref: String::new(),
    }
}

/// Without a word, the kubelet's default: unconfined.
fn seccomp(wanted: Option<&SeccompProfile>) -> Result<SecurityProfile, TranslateError> {
    let Some(wanted) = wanted else {
        return Ok(profile(ProfileType::Unconfined));
    };
    match (wanted.kind, &wanted.localhost_profile) {
        (SeccompKind::RuntimeDefault, None) => Ok(profile(ProfileType::RuntimeDefault)),
        (SeccompKind::Unconfined, None) => Ok(profile(ProfileType::Unconfined)),
        (SeccompKind::Localhost, Some(file)) => Ok(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: Path::new(SECCOMP_FOLDER)
                .join(file.as_str())
                .display()
                .to_string(),
        }),
        _ => Err(TranslateError::SeccompProfile {
            folder: SECCOMP_FOLDER,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::manifest;
    use super::*;

    fn context(
        pod: &str,
        container: &str,
        image_user: &ImageUser,
    ) -> Result<LinuxContainerSecurityContext, TranslateError> {
        let spec = manifest(
            &format!(
                "  securityContext: {{{pod}}}\n  containers: \
                 [{{name: app, image: i, securityContext: {{{container}}}}}]"
            ),
            "",
        )
        .pod
        .spec;
        of_container(&spec, &spec.containers[0], image_user)
    }

    const ROOT: ImageUser = ImageUser::Uid(0);

    #[test]
    fn a_containers_settings_win_over_the_pods_and_these_over_the_images() {
        let user = |context: LinuxContainerSecurityContext| context.run_as_user.unwrap().value;
        assert_eq!(user(context("", "", &ImageUser::Uid(7)).unwrap()), 7);
        assert_eq!(
            user(context("runAsUser: 5", "", &ImageUser::Uid(7)).unwrap()),
            5
        );
        assert_eq!(
            user(context("runAsUser: 5", "runAsUser: 0", &ROOT).unwrap()),
            0
        );
        let named = context("", "runAsGroup: 9", &ImageUser::Name("app".into())).unwrap();
        assert_eq!(
            (named.run_as_username.as_str(), named.run_as_user),
            ("app", None)
        );
        assert_eq!(named.run_as_group.unwrap().value, 9);
    }

    #[test]
    fn root_is_refused_where_the_pod_says_so() {
        assert!(context("runAsNonRoot: true", "", &ROOT).is_err());
        assert!(context("runAsNonRoot: true", "", &ImageUser::Name("app".into())).is_err());
        assert!(context("runAsNonRoot: true", "runAsUser: 0", &ImageUser::Uid(1)).is_err());
        assert!(context("runAsNonRoot: true", "", &ImageUser::Uid(1)).is_ok());
        assert!(context("runAsNonRoot: true", "runAsNonRoot: false", &ROOT).is_ok());
    }

    #[test]
    fn a_privileged_container_sees_every_path() {
        let plain = context("", "", &ROOT).unwrap();
        assert!(plain.masked_paths.contains(&"/proc/kcore".to_owned()));
        let privileged = context("", "privileged: true", &ROOT).unwrap();
        assert!(privileged.masked_paths.is_empty() && privileged.readonly_paths.is_empty());
    }

    #[test]
    fn profiles_and_groups_are_handed_on() {
        let context = context(
            "fsGroup: 2000, supplementalGroups: [3000], seccompProfile: {type: RuntimeDefault}",
            "allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_RAW]}",
            &ROOT,
        )
        .unwrap();
        assert_eq!(context.supplemental_groups, [2000, 3000]);
        assert!(context.no_new_privs);
        assert_eq!(context.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert_eq!(
            context.seccomp.unwrap().profile_type(),
            ProfileType::RuntimeDefault
        );
        assert!(super::tests::context("seccompProfile: {type: Localhost}", "", &ROOT).is_err());
    }
}
