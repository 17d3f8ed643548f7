//! Events to containerd: in order, kept while it restarts (containerd, `pkg/shim/publisher.go`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podvisor_proto::containerd::events::{
    Envelope, EventsClient, ForwardRequest, NAMESPACE_METADATA_KEY, TaskCreate, TaskDelete,
    TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart,
};
use podvisor_proto::containerd::{any_of, now};
use podvisor_proto::ttrpc::{CallOptions, Client};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Events kept while containerd is away; as many as its own shims keep.
const QUEUE_LEN: usize = 2048;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// An event of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A container was created.
    Create(TaskCreate),
    /// Its init was started.
    Start(TaskStart),
    /// Another process was created in it.
    ExecAdded(TaskExecAdded),
    /// That process was started.
    ExecStarted(TaskExecStarted),
    /// A process ended.
    Exit(TaskExit),
    /// A process was killed for want of memory.
    Oom(TaskOom),
    /// A container was paused.
    Paused(TaskPaused),
    /// A container goes on.
    Resumed(TaskResumed),
    /// A process was deleted.
    Delete(TaskDelete),
}

impl Event {
    fn envelope(&self, namespace: &str) -> Envelope {
        let (topic, event) = match self {
            Self::Create(event) => ("/tasks/create", any_of(event)),
            Self::Start(event) => ("/tasks/start", any_of(event)),
            Self::ExecAdded(event) => ("/tasks/exec-added", any_of(event)),
            Self::ExecStarted(event) => ("/tasks/exec-started", any_of(event)),
            Self::Exit(event) => ("/tasks/exit", any_of(event)),
            Self::Oom(event) => ("/tasks/oom", any_of(event)),
            Self::Paused(event) => ("/tasks/paused", any_of(event)),
            Self::Resumed(event) => ("/tasks/resumed", any_of(event)),
            Self::Delete(event) => ("/tasks/delete", any_of(event)),
        };
        Envelope {
            timestamp: Some(now()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        }
    }
}

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// Takes events. Clones publish into the same queue.
#[derive(Clone)]
pub struct Publisher {
    queue: mpsc::Sender<Item>,
    namespace: String,
    lost: Arc<AtomicU64>,
}

impl Publisher {
    /// A publisher to the ttrpc socket at `address`; without one events go nowhere.
    pub fn spawn(address: Option<PathBuf>, namespace: &str) -> Self {
        let (queue, items) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(forward(address, namespace.to_owned(), items));
        Self {
            queue,
            namespace: namespace.to_owned(),
            lost: Arc::default(),
        }
    }

    /// Publishes an event, after all before it. Never waits: when the queue is full the event is
    /// lost.
    pub fn publish(&self, event: &Event) {
        let item = Item::Event(Box::new(event.envelope(&self.namespace)));
        if self.queue.try_send(item).is_err() {
            // A guest can cause events without end: told ever more rarely.
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                tracing::warn!(lost, "containerd takes no events: some are lost");
            }
        }
    }

    /// Waits until everything published so far has reached containerd, for at most `timeout`.
    pub async fn flush(&self, timeout: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.queue.send(Item::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(timeout, flush).await;
    }
}

async fn forward(address: Option<PathBuf>, namespace: String, mut items: mpsc::Receiver<Item>) {
    let options = CallOptions::new()
        .with_timeout(CALL_TIMEOUT)
        .with_metadata(NAMESPACE_METADATA_KEY, namespace);
    let mut connection: Option<EventsClient> = None;
    while let Some(item) = items.recv().await {
        match (item, &address) {
            (Item::Flush(done), _) => drop(done.send(())),
            (Item::Event(_), None) => {}
            (Item::Event(envelope), Some(address)) => {
                let request = ForwardRequest {
                    envelope: Some(*envelope),
                };
                loop {
                    if connection.is_none() {
                        connection = connect(address, &options).await;
                    }
                    match &connection {
                        Some(client) if client.forward(request.clone()).await.is_ok() => break,
                        _ => {
                            connection = None;
                            tokio::time::sleep(RETRY_PAUSE).await;
                        }
                    }
                }
            }
        }
    }
}

/// Connects; None when containerd is not there.
async fn connect(address: &PathBuf, options: &CallOptions) -> Option<EventsClient> {
    let stream = UnixStream::connect(address).await.ok()?;
    Some(EventsClient::new(Client::new(stream)).with_options(options.clone()))
}
