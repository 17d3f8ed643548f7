//! Limits that fit the machine, and limits that do not.

use podvisor_proto::containerd::Any;
use podvisor_proto::containerd::task::*;
use podvisor_proto::ttrpc::{Code, Status as TtrpcStatus};

use podvisor_vmm::EndReason;

use super::machines::MACHINE;
use super::{CONTAINER, Pod, SANDBOX};

/// A pod of one CPU and 128 MiB, whose machine has room for more.
const ROOM: &str = r#","io.kubernetes.cri.sandbox-memory":"134217728","podvisor.io/max-cpus":"4",
    "podvisor.io/max-memory":"1Gi""#;
const LARGE: &str = r#"{"memory":{"limit":268435456},"cpu":{"quota":150000,"period":100000}}"#;
const SMALL: &str = r#"{"memory":{"limit":67108864},"cpu":{"quota":50000,"period":100000}}"#;

async fn update(pod: &Pod, resources: &str) -> Result<(), TtrpcStatus> {
    update_of(pod, CONTAINER, resources).await
}

async fn update_of(pod: &Pod, id: &str, resources: &str) -> Result<(), TtrpcStatus> {
    let request = UpdateTaskRequest {
        id: id.into(),
        resources: Some(Any {
            type_url: "LinuxResources".into(),
            value: resources.as_bytes().to_vec(),
        }),
        ..UpdateTaskRequest::default()
    };
    pod.client.update(request).await
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_the_machine_is_refused_with_both_numbers() {
    let pod = Pod::running().await;
    // The machine has the default of 512 MiB and what the guest itself takes.
    update(&pod, r#"{"memory":{"limit":268435456}}"#)
        .await
        .unwrap();
    let error = update(&pod, r#"{"memory":{"limit":4294967296}}"#)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("4096 MiB"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_machine_is_confined_to_what_its_containers_name() {
    let pod = Pod::running().await;
    update(&pod, r#"{"cpu":{"cpus":"4-5"}}"#).await.unwrap();
    assert_eq!(pod.guest.state.lock().unwrap().cpus, "4-5");
    update(&pod, "{}").await.unwrap();
    assert_eq!(pod.guest.state.lock().unwrap().cpus, "");
}

/// A pod whose machine can grow, with two containers.
async fn roomy() -> Pod {
    let pod = Pod::of_kind(ROOM).await;
    for id in [CONTAINER, "c2"] {
        pod.create(id).await.unwrap();
        pod.start(id, "").await.unwrap();
    }
    pod
}

impl Pod {
    /// What was done to the machine's size since it was last asked.
    fn sizes(&self) -> Vec<String> {
        std::mem::take(&mut self.guest.state.lock().unwrap().sizes)
    }
}

#[tokio::test(start_paused = true)]
async fn the_machine_grows_before_the_guests_groups_and_shrinks_after() {
    let pod = roomy().await;
    update(&pod, LARGE).await.unwrap();
    let grown = ["314 MiB", "2 vCPUs", "use 2 314", "update c1"];
    assert_eq!(pod.sizes(), grown);
    // The same again: it has that.
    update(&pod, LARGE).await.unwrap();
    assert_eq!(pod.sizes(), ["update c1"]);
    // And both together.
    update_of(&pod, "c2", LARGE).await.unwrap();
    assert_eq!(
        pod.sizes(),
        ["582 MiB", "3 vCPUs", "use 3 582", "update c2"]
    );
    update(&pod, SMALL).await.unwrap();
    assert_eq!(pod.sizes(), ["update c1", "382 MiB", "2 vCPUs"]);
    update_of(&pod, "c2", SMALL).await.unwrap();
    assert_eq!(pod.sizes(), ["update c2", "182 MiB", "1 vCPUs"]);
}

#[tokio::test(start_paused = true)]
async fn two_changes_at_once_are_one_after_the_other() {
    let pod = roomy().await;
    let both = tokio::join!(update(&pod, LARGE), update_of(&pod, "c2", LARGE));
    assert!(matches!(both, (Ok(()), Ok(()))), "{both:?}");
    let mut sizes = pod.sizes();
    let updates: Vec<String> = sizes
        .extract_if(.., |size| size.starts_with("update"))
        .collect();
    assert_eq!(updates.len(), 2);
    assert_eq!(
        sizes,
        [
            "314 MiB",
            "2 vCPUs",
            "use 2 314",
            "582 MiB",
            "3 vCPUs",
            "use 3 582"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_beyond_the_most_is_refused_and_changes_nothing() {
    let pod = roomy().await;
    for (resources, key, number) in [
        (
            r#"{"memory":{"limit":2147483648}}"#,
            "podvisor.io/max-memory",
            "2048 MiB",
        ),
        (
            r#"{"cpu":{"quota":900000,"period":100000}}"#,
            "podvisor.io/max-cpus",
            "9000m",
        ),
    ] {
        update(&pod, SMALL).await.unwrap();
        pod.sizes();
        let error = update(&pod, resources).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let text = error.message();
        assert!(text.contains(key) && text.contains(number), "{text}");
        assert!(pod.sizes().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_take_its_memory_is_left_as_it_was() {
    let pod = roomy().await;
    pod.guest.state.lock().unwrap().is_full = true;
    let error = update(&pod, LARGE).await.unwrap_err();
    let text = error.message();
    assert!(text.contains("182 MiB of 314 MiB"), "{text}");
    assert_eq!(pod.sizes(), ["314 MiB", "182 MiB", "1 vCPUs"]);
    pod.guest.state.lock().unwrap().is_full = false;
    update(&pod, LARGE).await.unwrap();
    assert_eq!(pod.sizes().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_refuses_the_limits_gives_back_what_it_got() {
    let pod = roomy().await;
    pod.guest.state.lock().unwrap().refuses = true;
    update(&pod, LARGE).await.unwrap_err();
    let sizes = ["314 MiB", "2 vCPUs", "use 2 314", "182 MiB", "1 vCPUs"];
    assert_eq!(pod.sizes(), sizes);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_is_not_changed() {
    let pod = roomy().await;
    pod.guest.state.lock().unwrap().is_full = true;
    let (update, ()) = tokio::join!(update(&pod, LARGE), async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        pod.guest.end(EndReason::Shutdown);
    });
    let error = update.unwrap_err();
    assert!(error.message().contains("ended"), "{error}");
    let error = update_of(&pod, CONTAINER, LARGE).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let missing = update_of(&pod, "c9", LARGE).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn a_machine_grows_as_a_whole() {
    let pod = Pod::of_kind(&format!("{MACHINE}{ROOM}")).await;
    pod.create_machine(CONTAINER).await.unwrap();
    pod.start(CONTAINER, "").await.unwrap();
    update(&pod, LARGE).await.unwrap();
    let sizes = pod.sizes();
    assert_eq!(
        sizes.get(..2),
        Some(&["256 MiB".to_owned(), "2 vCPUs".to_owned()][..])
    );
    assert!(
        !sizes.iter().any(|size| size.starts_with("update")),
        "{sizes:?}"
    );
    update(&pod, SMALL).await.unwrap();
    assert_eq!(pod.sizes(), ["128 MiB", "1 vCPUs"]);
}

const PINNED: &str = r#","io.kubernetes.cri.sandbox-cpu-quota":"200000",
    "io.kubernetes.cri.sandbox-cpu-period":"100000","podvisor.io/cpu-pinning":"auto""#;

impl Pod {
    /// Creates a container with resources (JSON).
    async fn create_with_limits(&self, id: &str, resources: &str) -> Result<(), TtrpcStatus> {
        let bundle = self.bundle(id, "container");
        let path = std::path::Path::new(&bundle).join("config.json");
        let mut spec: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        spec["linux"]["resources"] = serde_json::from_str(resources).unwrap();
        std::fs::write(&path, spec.to_string()).unwrap();
        let request = CreateTaskRequest {
            id: id.into(),
            bundle,
            ..CreateTaskRequest::default()
        };
        self.client.create(request).await.map(drop)
    }

    fn pinned(&self) -> Vec<Vec<usize>> {
        self.guest.state.lock().unwrap().pinned.clone()
    }
}

fn on_cpus(cpus: &str) -> String {
    format!(r#"{{"cpu":{{"cpus":"{cpus}","quota":100000,"period":100000}}}}"#)
}

#[tokio::test(start_paused = true)]
async fn processors_are_pinned_to_what_containers_have_for_themselves() {
    let pod = Pod::of_kind(PINNED).await;
    for (resources, why) in [
        ("{}", "names no CPUs"),
        (&*on_cpus("0-3"), "CPUs 0-3 are not"),
    ] {
        let error = pod
            .create_with_limits(CONTAINER, resources)
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(why), "{error}");
    }
    assert!(pod.pinned().is_empty());
    pod.create_with_limits(CONTAINER, &on_cpus("4"))
        .await
        .unwrap();
    assert_eq!(pod.pinned(), [[4]], "another container is to come");
    pod.create_with_limits("c2", &on_cpus("6")).await.unwrap();
    assert_eq!(pod.pinned(), [[4], [6]]);
    assert_eq!(pod.guest.state.lock().unwrap().cpus, "4,6");
    update_of(&pod, "c2", &on_cpus("7")).await.unwrap();
    assert_eq!(pod.pinned(), [[4], [7]]);
    let error = update_of(&pod, "c2", &on_cpus("0-7")).await.unwrap_err();
    assert!(error.message().contains("0-7"), "{error}");
    let error = update_of(&pod, "c2", &on_cpus("4")).await.unwrap_err();
    assert!(error.message().contains("2 vCPUs"), "{error}");
    assert_eq!(pod.pinned(), [[4], [7]]);
}

#[tokio::test]
async fn a_machine_without_cpus_of_its_own_is_not_pinned() {
    let pod = Pod::of_kind(&format!("{MACHINE}{PINNED}")).await;
    let error = pod.create_machine(CONTAINER).await.unwrap_err();
    assert!(
        error.message().contains("podvisor.io/cpu-pinning"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_guest_with_an_image_of_its_hosts_nodes_comes_with_its_first_container() {
    let numa = r#","podvisor.io/numa":"auto""#;
    let launched = |pod: &Pod| pod.guest.state.lock().unwrap().launched.len();
    let pod = Pod::of_kind(numa).await;
    assert_eq!(launched(&pod), 0);
    pod.create_with_limits(CONTAINER, &on_cpus("0"))
        .await
        .unwrap();
    pod.start(CONTAINER, "").await.unwrap();
    pod.create_with_limits("c2", "{}").await.unwrap();
    assert_eq!(launched(&pod), 1);
    pod.kill(SANDBOX, "", 9).await.unwrap();
    for id in [CONTAINER, SANDBOX] {
        assert_eq!(pod.wait(id, "").await, 137);
    }

    // One that ends before, and one that cannot boot: the next container tries again.
    let pod = Pod::of_kind(numa).await;
    pod.guest.state.lock().unwrap().silent = true;
    pod.create_with_limits(CONTAINER, &on_cpus("0"))
        .await
        .unwrap_err();
    pod.guest.state.lock().unwrap().silent = false;
    pod.create_with_limits(CONTAINER, &on_cpus("0"))
        .await
        .unwrap();
    assert_eq!(launched(&pod), 2);
    let pod = Pod::of_kind(numa).await;
    pod.kill(SANDBOX, "", 9).await.unwrap();
    assert_eq!(pod.wait(SANDBOX, "").await, 137);
    assert_eq!(launched(&pod), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_can_be_ended_while_its_guest_comes_with_a_container() {
    let pod = Pod::of_kind(r#","podvisor.io/numa":"auto""#).await;
    pod.guest.state.lock().unwrap().silent = true;
    let resources = on_cpus("0");
    let (created, ()) = tokio::join!(pod.create_with_limits(CONTAINER, &resources), async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        pod.kill(SANDBOX, "", 9).await.unwrap();
    });
    created.unwrap_err();
    assert_eq!(pod.wait(SANDBOX, "").await, 137);
    pod.ends_once(SANDBOX).await;
}
