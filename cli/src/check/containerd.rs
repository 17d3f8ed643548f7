//! containerd, and its configuration of our runtime.

use std::path::Path;

use podvisor_proto::cri::v1::{RuntimeHandler, StatusResponse, VersionResponse};
use serde::Deserialize;

use super::Check;
use crate::cri::Cri;

/// The runtime that our handler names.
const RUNTIME_TYPE: &str = "io.containerd.podvisor.v2";
/// What the file name of its program is, which a handler may name instead.
const SHIM: &str = "containerd-shim-podvisor-v2";
/// What lets our annotations through.
const ANNOTATIONS: &str = "podvisor.io/*";
/// Where admins read how to configure it.
const GUIDE: &str = "see runtimeclass/README.md";

/// Version, conditions, and the handlers that run pods in machines.
pub async fn checks(address: &Path) -> Vec<Check> {
    let name = "containerd";
    let cri = match Cri::connect(address).await {
        Ok(cri) => cri,
        Err(error) => return vec![Check::bad(name, error.to_string(), "start containerd")],
    };
    match tokio::try_join!(cri.version(), cri.status()) {
        Ok((version, status)) => {
            let mut checks = vec![runtime(&version), conditions(&status)];
            let json = status.info.get("config").map_or("", String::as_str);
            let announced = &status.runtime_handlers;
            checks.extend(handlers(json, numbers(&version), announced));
            checks
        }
        Err(error) => vec![Check::bad(
            name,
            error.to_string(),
            "switch its CRI plugin on",
        )],
    }
}

fn runtime(version: &VersionResponse) -> Check {
    let name = "containerd";
    let text = version.runtime_version.trim_start_matches('v');
    let found = format!("{} {text}", version.runtime_name);
    let at_least = numbers(version) >= (1, 7);
    match at_least && version.runtime_name == "containerd" {
        true => Check::good(name, found),
        false => Check::bad(name, found, "use containerd 1.7 or later"),
    }
}

/// containerd's major and minor number; zeros where they are none.
fn numbers(version: &VersionResponse) -> (u32, u32) {
    let text = version.runtime_version.trim_start_matches('v');
    let mut numbers = text
        .split(['.', '-', '~', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn conditions(status: &StatusResponse) -> Check {
    let name = "containerd is ready";
    let conditions = status.status.iter().flat_map(|status| &status.conditions);
    let bad: Vec<String> = conditions
        .filter(|condition| !condition.status)
        .map(|condition| format!("{}: {}", condition.r#type, condition.message))
        .collect();
    match bad.is_empty() {
        true => Check::good(name, "runtime and network"),
        false => Check::bad(
            name,
            bad.join("; "),
            "put a CNI configuration into /etc/cni/net.d",
        ),
    }
}

/// The part of containerd's CRI configuration that matters, as its verbose status has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CriConfig {
    containerd: ContainerdConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerdConfig {
    runtimes: std::collections::BTreeMap<String, RuntimeConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "runtimeType")]
    runtime_type: String,
    #[serde(rename = "runtimePath")]
    runtime_path: String,
    #[serde(
        rename = "PodAnnotations",
        alias = "podAnnotations",
        alias = "pod_annotations"
    )]
    pod_annotations: Option<Vec<String>>,
    privileged_without_host_devices: bool,
    sandboxer: String,
}

impl RuntimeConfig {
    fn is_ours(&self) -> bool {
        let program = Path::new(&self.runtime_path).file_name();
        let named = !self.runtime_path.is_empty();
        match named {
            true => program.is_some_and(|name| name == SHIM),
            false => self.runtime_type == RUNTIME_TYPE,
        }
    }
}

/// `announced` is what containerd tells the kubelet of its handlers.
fn handlers(config: &str, containerd: (u32, u32), announced: &[RuntimeHandler]) -> Vec<Check> {
    let name = "containerd: handler";
    let config: CriConfig = match serde_json::from_str(config) {
        Ok(config) => config,
        Err(error) => {
            let found = format!("its configuration cannot be read: {error}");
            return vec![Check::bad(name, found, "use containerd 1.7 or later")];
        }
    };
    let ours = config.containerd.runtimes.into_iter();
    let ours: Vec<_> = ours.filter(|(_, runtime)| runtime.is_ours()).collect();
    if ours.is_empty() {
        return vec![Check::bad(
            name,
            format!("none of type {RUNTIME_TYPE}, and none with runtime_path …/{SHIM}"),
            GUIDE,
        )];
    }
    ours.into_iter()
        .map(|(handler, runtime)| {
            let check = settings(&handler, &runtime, containerd);
            match check.remedy.is_empty() && containerd >= FEATURES_FROM {
                true => features(check, &handler, announced),
                false => check,
            }
        })
        .collect()
}

/// The version from which a pod on the host's network does not crash containerd when the shim is
/// its sandboxer.
const SHIM_SANDBOXER_FROM: (u32, u32) = (2, 3);

fn settings(handler: &str, runtime: &RuntimeConfig, containerd: (u32, u32)) -> Check {
    let name = format!("containerd: handler {handler}");
    let annotations = runtime
        .pod_annotations
        .iter()
        .flatten()
        .any(|entry| entry == ANNOTATIONS);
    let mut missing = Vec::new();
    if !annotations {
        missing.push(format!("pod_annotations = [{ANNOTATIONS:?}]"));
    }
    if !runtime.privileged_without_host_devices {
        missing.push("privileged_without_host_devices = true".to_owned());
    }
    if !missing.is_empty() {
        return Check::bad(name, format!("without {}", missing.join(", ")), GUIDE);
    }
    if runtime.sandboxer == "shim" && containerd < SHIM_SANDBOXER_FROM {
        let found = "sandboxer = \"shim\": a pod with hostNetwork crashes this containerd";
        return Check::warning(
            name,
            found,
            "use sandboxer = \"podsandbox\" before containerd 2.3",
        );
    }
    Check::good(name, &*runtime.runtime_type)
}

/// The version from which containerd tells what handlers can.
const FEATURES_FROM: (u32, u32) = (2, 0);

/// The check of a handler that is set up well: the kubelet must also hear what it can.
fn features(good: Check, handler: &str, announced: &[RuntimeHandler]) -> Check {
    let known = announced.iter().find(|known| known.name == handler);
    let features = known.and_then(|known| known.features);
    if features.is_some_and(|features| features.user_namespaces) {
        return good;
    }
    let found = "pods with hostUsers: false or recursiveReadOnly are kept from it: containerd does not \
                 ask it for its features";
    Check::warning(
        good.name,
        found,
        "use runtime_type and runtime_path of runtimeclass/containerd-2.x.toml",
    )
}

#[cfg(test)]
mod tests {
    use podvisor_proto::cri::v1::RuntimeHandlerFeatures;

    use super::*;

    fn version(text: &str) -> bool {
        let version = VersionResponse {
            runtime_name: "containerd".into(),
            runtime_version: text.into(),
            ..VersionResponse::default()
        };
        runtime(&version).ok
    }

    #[test]
    fn versions_from_1_7_on_are_taken() {
        assert!(version("1.7.24") && version("v2.1.9") && version("1.7.24~ds1"));
        assert!(!version("1.6.36") && !version("") && !version("unknown"));
    }

    #[test]
    fn a_handler_needs_its_settings() {
        let config = |settings: &str| {
            format!(
                r#"{{"containerd": {{"runtimes": {{"runc": {{"runtimeType": "io.containerd.runc.v2"}},
                "vm": {{"runtimeType": "io.containerd.podvisor.v2"{settings}}}}}}}}}"#
            )
        };
        let announced = [announced("vm", true)];
        let good = config(
            r#", "PodAnnotations": ["podvisor.io/*"], "privileged_without_host_devices": true"#,
        );
        assert_eq!(
            handlers(&good, (2, 1), &announced),
            [Check::good("containerd: handler vm", RUNTIME_TYPE)]
        );
        let shim = config(
            r#", "PodAnnotations": ["podvisor.io/*"], "privileged_without_host_devices": true, "sandboxer": "shim""#,
        );
        let warned = handlers(&shim, (2, 1), &announced);
        assert!(
            warned[0].ok && warned[0].found.contains("hostNetwork"),
            "{warned:?}"
        );
        assert_eq!(
            handlers(&shim, (2, 3), &announced),
            [Check::good("containerd: handler vm", RUNTIME_TYPE)]
        );
        let bare = handlers(&config(""), (2, 1), &announced);
        assert!(bare[0].found.contains("pod_annotations"), "{bare:?}");
        assert!(
            bare[0].found.contains("privileged_without_host_devices"),
            "{bare:?}"
        );
        assert!(!handlers("{}", (2, 1), &[])[0].ok && !handlers("", (2, 1), &[])[0].ok);
    }

    fn announced(name: &str, user_namespaces: bool) -> RuntimeHandler {
        RuntimeHandler {
            name: name.into(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: user_namespaces,
                user_namespaces,
            }),
        }
    }

    #[test]
    fn a_handler_of_another_type_is_ours_by_its_program() {
        let config = |program: &str| {
            format!(
                r#"{{"containerd": {{"runtimes": {{"vm": {{"runtimeType": "io.containerd.runc.v2",
                "runtimePath": "{program}", "PodAnnotations": ["podvisor.io/*"],
                "privileged_without_host_devices": true}}}}}}}}"#
            )
        };
        let ours = config("/usr/local/bin/containerd-shim-podvisor-v2");
        let known = [announced("vm", true)];
        let good = Check::good("containerd: handler vm", "io.containerd.runc.v2");
        assert_eq!(handlers(&ours, (2, 1), &known), std::slice::from_ref(&good));
        assert_eq!(handlers(&ours, (1, 7), &[]), [good]);
        for unknown in [
            vec![],
            vec![announced("vm", false)],
            vec![announced("x", true)],
        ] {
            let warned = &handlers(&ours, (2, 1), &unknown)[0];
            assert!(
                warned.ok && warned.found.contains("hostUsers"),
                "{warned:?}"
            );
        }
        let crun = config("/usr/bin/containerd-shim-crun-v2");
        assert!(!handlers(&crun, (2, 1), &known)[0].ok);
    }
}
