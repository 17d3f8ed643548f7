//! Cases that run once more with pods whose sandbox is a task of containerd's sandboxer "shim":
//! one of each kind, since what is below is the same, and half of them for every change. `--env
//! PODVISOR_HANDLER=podvisor-sandbox` runs everything with them.

use crate::case::Case;

/// The variable that names the handler with that sandboxer, in nodes whose containerd has one.
const VARIABLE: &str = "PODVISOR_SANDBOXER_HANDLER";
/// What the names of such cases end with.
const SUFFIX: &str = "@sandboxer_shim";

const CASES: [&str; 11] = [
    "containers_share_network_ipc_and_volumes",
    "containers_see_what_their_spec_says",
    "executions_end_with_their_own_codes",
    "input_reaches_containers_and_executions",
    "a_container_is_asked_to_end_before_it_is_killed",
    "statistics_are_right_for_known_loads",
    "a_sandbox_tells_what_its_machine_uses",
    "the_guest_has_the_networks_routes_and_mtu",
    "a_wrong_annotation_fails_the_pod_by_name",
    "a_killed_shim_is_reported_and_leaves_nothing",
    "pods_outlive_a_restart_of_containerd",
];

/// Those of `cases` that run once more, with their names.
pub fn again(cases: Vec<Case>) -> Vec<(String, Case)> {
    // The suite ends with its process: what is leaked here is one word.
    let handler = std::env::var(VARIABLE).ok().map(|name| &*name.leak());
    let Some(handler) = handler else {
        return Vec::new();
    };
    let chosen = cases.into_iter().filter(|case| CASES.contains(&case.name));
    chosen
        .map(|case| {
            (
                format!("{}{SUFFIX}", case.name),
                case.with_vm_pods_of(handler).shared(),
            )
        })
        .collect()
}

#[test]
fn every_case_exists() {
    let all: Vec<&str> = crate::cases().iter().map(|case| case.name).collect();
    for case in CASES {
        assert!(all.contains(&case), "no such case: {case}");
    }
}
