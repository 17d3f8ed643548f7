//! A blocking CRI connection to the node's containerd.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use podvisor_proto::cri::v1::image_service_client::ImageServiceClient;
use podvisor_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use podvisor_proto::cri::v1::{ImageSpec, ImageStatusRequest, PullImageRequest};
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
        let image = Some(ImageSpec {
            image: name.into(),
            ..ImageSpec::default()
        });
        let request = ImageStatusRequest {
            image: image.clone(),
            verbose: false,
        };
        let mut images = self.images.clone();
        self.runtime.block_on(async {
            if images
                .image_status(request)
                .await?
                .into_inner()
                .image
                .is_some()
            {
                return Ok(());
            }
            let request = PullImageRequest {
                image,
                ..PullImageRequest::default()
            };
            let pulled = images.pull_image(request).await;
            pulled.map(drop).with_context(|| format!("pull {name}"))
        })
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
        let call = call(self.client.clone());
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(CALL_TIMEOUT, call).await });
        let answer = answer.with_context(|| format!("{what}: no answer in {CALL_TIMEOUT:?}"))?;
        answer
            .map(Response::into_inner)
            .map_err(|status| anyhow::anyhow!("{what}: {:?}: {}", status.code(), status.message()))
    }
}
