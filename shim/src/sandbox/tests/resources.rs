//! Limits that fit the machine, and limits that do not.

use podvisor_proto::containerd::Any;
use podvisor_proto::containerd::task::*;
use podvisor_proto::ttrpc::{Code, Status as TtrpcStatus};

use super::{CONTAINER, Pod};

async fn update(pod: &Pod, resources: &str) -> Result<(), TtrpcStatus> {
    let request = UpdateTaskRequest {
        id: CONTAINER.into(),
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
