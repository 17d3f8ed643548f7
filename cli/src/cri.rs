//! The container runtime as the kubelet calls it.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use podvisor_proto::cri;
use podvisor_proto::cri::v1::image_service_client::ImageServiceClient;
use podvisor_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use podvisor_proto::cri::v1::{
    AttachRequest, Container, ContainerConfig, ContainerFilter, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, Image,
    ImageSpec, ImageStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxConfig, PodSandboxStatus, PodSandboxStatusRequest, PullImageRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StatusResponse, StopContainerRequest, StopPodSandboxRequest, VersionRequest,
    VersionResponse,
};
use serde::Deserialize;
use thiserror::Error;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Largest reply that is taken: ExecSync answers up to 16 MiB of each stream.
const REPLY_LEN_MAX: usize = 40 << 20;

/// A call that the runtime refused.
#[derive(Debug, Error)]
#[error("{call}: {}", status.message())]
pub struct CallError {
    call: &'static str,
    status: Box<Status>,
}

impl CallError {
    /// Whether what the call was about does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status.code() == Code::NotFound
    }
}

/// A connection to the runtime's two services. Clones share it.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to the runtime that listens on `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, cri::ConnectError> {
        let channel = cri::connect(socket).await?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(REPLY_LEN_MAX),
            images: ImageServiceClient::new(channel),
        })
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<VersionResponse, CallError> {
        let request = VersionRequest {
            version: "0.1.0".to_owned(),
        };
        call("Version", self.runtime.clone().version(request)).await
    }

    /// Conditions and configuration of the runtime.
    pub async fn status(&self) -> Result<StatusResponse, CallError> {
        call(
            "Status",
            self.runtime.clone().status(StatusRequest { verbose: true }),
        )
        .await
    }

    /// Makes a pod's environment; answers its id.
    pub async fn run_sandbox(
        &self,
        config: &PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String, CallError> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: runtime_handler.to_owned(),
        };
        let reply = call(
            "RunPodSandbox",
            self.runtime.clone().run_pod_sandbox(request),
        )
        .await?;
        Ok(reply.pod_sandbox_id)
    }

    /// Stops everything in a pod. One that is gone has stopped.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), CallError> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let mut runtime = self.runtime.clone();
        let reply = call("StopPodSandbox", runtime.stop_pod_sandbox(request)).await;
        done_or_gone(reply)
    }

    /// Removes a pod with its containers, unless it is gone.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), CallError> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let mut runtime = self.runtime.clone();
        let reply = call("RemovePodSandbox", runtime.remove_pod_sandbox(request)).await;
        done_or_gone(reply)
    }

    /// State and addresses of a pod.
    pub async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, CallError> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            ..Default::default()
        };
        let mut runtime = self.runtime.clone();
        let reply = call("PodSandboxStatus", runtime.pod_sandbox_status(request)).await?;
        Ok(reply.status.unwrap_or_default())
    }

    /// All pods.
    pub async fn list_sandboxes(&self) -> Result<Vec<PodSandbox>, CallError> {
        let request = ListPodSandboxRequest { filter: None };
        Ok(call(
            "ListPodSandbox",
            self.runtime.clone().list_pod_sandbox(request),
        )
        .await?
        .items)
    }

    /// Makes a container in a pod; answers its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: &PodSandboxConfig,
    ) -> Result<String, CallError> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let reply = call(
            "CreateContainer",
            self.runtime.clone().create_container(request),
        )
        .await?;
        Ok(reply.container_id)
    }

    /// Runs a container's command.
    pub async fn start_container(&self, id: &str) -> Result<(), CallError> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        call(
            "StartContainer",
            self.runtime.clone().start_container(request),
        )
        .await?;
        Ok(())
    }

    /// Asks a container to end, and kills it after `grace_seconds`.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<(), CallError> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace_seconds,
        };
        call(
            "StopContainer",
            self.runtime.clone().stop_container(request),
        )
        .await?;
        Ok(())
    }

    /// Removes an ended container.
    pub async fn remove_container(&self, id: &str) -> Result<(), CallError> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        call(
            "RemoveContainer",
            self.runtime.clone().remove_container(request),
        )
        .await?;
        Ok(())
    }

    /// The containers of a pod.
    pub async fn list_containers(&self, sandbox: &str) -> Result<Vec<Container>, CallError> {
        let filter = ContainerFilter {
            pod_sandbox_id: sandbox.to_owned(),
            ..Default::default()
        };
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let reply = call(
            "ListContainers",
            self.runtime.clone().list_containers(request),
        )
        .await?;
        Ok(reply.containers)
    }

    /// State and exit code of a container.
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, CallError> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let reply = call(
            "ContainerStatus",
            self.runtime.clone().container_status(request),
        )
        .await?;
        Ok(reply.status.unwrap_or_default())
    }

    /// Which streams a container has.
    pub async fn container_streams(&self, id: &str) -> Result<ContainerStreams, CallError> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let mut runtime = self.runtime.clone();
        let reply = call("ContainerStatus", runtime.container_status(request)).await?;
        let info = reply.info.get("info").map_or("", String::as_str);
        Ok(ContainerStreams::of_info(info))
    }

    /// Connects to a container's streams; answers where.
    pub async fn attach(&self, request: AttachRequest) -> Result<String, CallError> {
        Ok(call("Attach", self.runtime.clone().attach(request))
            .await?
            .url)
    }

    /// Runs a command in a container to its end.
    pub async fn exec_sync(
        &self,
        container: &str,
        command: &[String],
        timeout: Option<Duration>,
    ) -> Result<ExecSyncResponse, CallError> {
        let seconds = timeout.map_or(0, |timeout| timeout.as_secs().max(1));
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        call("ExecSync", self.runtime.clone().exec_sync(request)).await
    }

    /// An image, if it is on this machine.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, CallError> {
        let request = ImageStatusRequest {
            image: Some(image_spec(name)),
            verbose: false,
        };
        Ok(
            call("ImageStatus", self.images.clone().image_status(request))
                .await?
                .image,
        )
    }

    /// Fetches an image.
    pub async fn pull(&self, name: &str, sandbox: &PodSandboxConfig) -> Result<(), CallError> {
        let request = PullImageRequest {
            image: Some(image_spec(name)),
            auth: None,
            sandbox_config: Some(sandbox.clone()),
        };
        call("PullImage", self.images.clone().pull_image(request)).await?;
        Ok(())
    }
}

/// Which streams a container was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContainerStreams {
    pub stdin: bool,
    pub tty: bool,
}

/// What containerd says of a container beyond CRI, as far as it matters (containerd,
/// `internal/cri/types/container_status.go`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerInfo {
    config: ContainerStreams,
}

impl ContainerStreams {
    /// A container of another runtime has none that are known of.
    fn of_info(json: &str) -> Self {
        let info: ContainerInfo = serde_json::from_str(json).unwrap_or_default();
        info.config
    }
}

fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    }
}

fn done_or_gone<T>(reply: Result<T, CallError>) -> Result<(), CallError> {
    match reply {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

async fn call<T>(
    call: &'static str,
    reply: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match reply.await {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) => Err(CallError {
            call,
            status: Box::new(status),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_read_from_what_containerd_says() {
        let info =
            r#"{"sandboxID":"a","config":{"metadata":{"name":"m"},"stdin":true,"tty":true}}"#;
        let streams = ContainerStreams {
            stdin: true,
            tty: true,
        };
        assert_eq!(ContainerStreams::of_info(info), streams);
        for other in ["", "{}", r#"{"config":{"metadata":{}}}"#] {
            assert_eq!(
                ContainerStreams::of_info(other),
                ContainerStreams::default()
            );
        }
    }
}
