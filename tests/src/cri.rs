//! A blocking CRI connection to the node's containerd.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use podvisor_proto::cri::v1::image_service_client::ImageServiceClient;
use podvisor_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use podvisor_proto::cri::v1::{
    Container, ContainerFilter, Image, ImageSpec, ImageStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PullImageRequest, RemoveImageRequest,
};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tower::service_fn;

/// Where the node's containerd listens.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// No call of a healthy node takes longer, not even on an emulated CPU.
const CALL_TIMEOUT: Duration = Duration::from_secs(240);

/// A connection to containerd's CRI service with a runtime to wait on it.
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to the node's containerd; calls made while it restarts are retried by the
    /// channel.
    ///
    /// # Errors
    /// When no runtime can be had or the endpoint is malformed. A containerd that is not there
    /// shows at the first call.
    pub fn connect() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(async {
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(service_fn(
                |_| async {
                    UnixStream::connect(CONTAINERD_SOCKET)
                        .await
                        .map(TokioIo::new)
                },
            ))
        });
        let client = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let images = ImageServiceClient::new(channel);
        Ok(Self {
            runtime,
            client,
            images,
        })
    }

    /// Makes sure that the node has an image.
    ///
    /// # Errors
    /// What containerd answered when it was asked to pull it.
    pub fn ensure_image(&self, name: &str) -> Result<()> {
        match self.image(name)? {
            Some(_) => Ok(()),
            None => self.pull_image(name).map(drop),
        }
    }

    /// What containerd knows of the image that a name, digest or id leads to.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn image(&self, name: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest {
            image: Some(image_spec(name)),
            verbose: false,
        };
        let answer = self.call_images(&format!("ImageStatus {name}"), |mut c| async move {
            c.image_status(request).await
        })?;
        Ok(answer.image)
    }

    /// Pulls an image and yields its reference, which is its id.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn pull_image(&self, name: &str) -> Result<String> {
        let request = PullImageRequest {
            image: Some(image_spec(name)),
            ..PullImageRequest::default()
        };
        let answer = self.call_images(&format!("PullImage {name}"), |mut c| async move {
            c.pull_image(request).await
        })?;
        Ok(answer.image_ref)
    }

    /// Removes an image with all its names, if there is one.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn remove_image(&self, name: &str) -> Result<()> {
        let request = RemoveImageRequest {
            image: Some(image_spec(name)),
        };
        self.call_images(&format!("RemoveImage {name}"), |mut c| async move {
            c.remove_image(request).await
        })
        .map(drop)
    }

    /// The pods that a filter lets through.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn pods(&self, filter: PodSandboxFilter) -> Result<Vec<PodSandbox>> {
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        let answer = self.call("ListPodSandbox", |mut c| async move {
            c.list_pod_sandbox(request).await
        })?;
        Ok(answer.items)
    }

    /// The containers that a filter lets through.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn containers(&self, filter: ContainerFilter) -> Result<Vec<Container>> {
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let answer = self.call("ListContainers", |mut c| async move {
            c.list_containers(request).await
        })?;
        Ok(answer.containers)
    }

    /// Makes one call of the image service and waits for its answer.
    ///
    /// # Errors
    /// The status that containerd answered with, or a timeout, prefixed by `what`.
    pub fn call_images<T, F>(
        &self,
        what: &str,
        call: impl FnOnce(ImageServiceClient<Channel>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.answer(what, call(self.images.clone()))
    }

    /// Makes one call and waits for its answer.
    ///
    /// # Errors
    /// The status that containerd answered with, or a timeout, prefixed by `what`.
    pub fn call<T, F>(
        &self,
        what: &str,
        call: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.answer(what, call(self.client.clone()))
    }

    fn answer<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(CALL_TIMEOUT, call).await });
        let answer = answer.with_context(|| format!("{what}: no answer in {CALL_TIMEOUT:?}"))?;
        answer
            .map(Response::into_inner)
            .map_err(|status| anyhow::anyhow!("{what}: {:?}: {}", status.code(), status.message()))
    }
}

fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.into(),
        ..ImageSpec::default()
    }
}
