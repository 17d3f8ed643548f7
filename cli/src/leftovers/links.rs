//! Taps and ingress filters, in the own and the named network namespaces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use futures::TryStreamExt;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, setns};

use super::LeftoversError;

/// Where names of network namespaces are kept.
const NETNS_FOLDER: &str = "/run/netns";

/// Counts of one or more namespaces.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) taps: usize,
    pub(super) filters: usize,
}

/// The files of the named namespaces.
pub(super) fn named_namespaces() -> Result<Vec<PathBuf>, LeftoversError> {
    let folder = Path::new(NETNS_FOLDER);
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(LeftoversError::read(folder)(error)),
    }
}

/// Counts in all of them.
pub(super) fn count() -> Result<Links, LeftoversError> {
    let own = PathBuf::from("/proc/self/ns/net");
    let mut sum = Links::default();
    for namespace in std::iter::once(own).chain(named_namespaces()?) {
        match count_in(&namespace) {
            Ok(links) => {
                sum.taps += links.taps;
                sum.filters += links.filters;
            }
            // A name whose namespace goes, or has gone, holds nothing.
            Err(error) if is_gone(&error) => {}
            Err(source) => {
                return Err(LeftoversError::Netns {
                    path: namespace,
                    source,
                });
            }
        }
    }
    Ok(sum)
}

/// A name that is removed meanwhile is missing, or a plain file that is no namespace.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
    )
}

/// Counts in one namespace, on a thread of its own: entering one changes the thread for good.
fn count_in(namespace: &Path) -> io::Result<Links> {
    let file = File::open(namespace)?;
    let counting = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(dump())
    });
    counting
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the counting thread panicked")))
}

/// Asks the kernel for the links of this thread's namespace, and each link's filters.
async fn dump() -> io::Result<Links> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let found: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(io::Error::other)?;
    let mut links = Links::default();
    for link in found {
        links.taps += usize::from(is_tap(&link));
        let Ok(index) = i32::try_from(link.header.index) else {
            continue;
        };
        let filters: Vec<_> = handle
            .traffic_filter(index)
            .get()
            .ingress()
            .execute()
            .try_collect()
            .await
            .map_err(io::Error::other)?;
        // The kernel lists a filter's hash tables beside it; priority and protocol name the filter.
        let names: BTreeSet<u32> = filters.iter().map(|filter| filter.header.info).collect();
        links.filters += names.len();
    }
    Ok(links)
}

fn is_tap(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Tun)),
        _ => false,
    })
}
