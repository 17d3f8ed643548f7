//! Privileged work done by this process itself.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use podvisor_devices::net::{Tap, VhostNet};
use podvisor_proto::agent::v1::NetworkConfig;
use podvisor_proto::cgroups::Metrics;

use super::route_socket::RouteSocket;
use super::scan::Link;
use super::{
    CardRequest, ConfineRequest, DiskRequest, HostError, HostOps, LinkSocket, MacRequest,
    NamespaceListeners, NatNetwork, NetworkRequest, Nic, NicQueue, RootfsRequest, TapsRequest,
    VolumeOrigin, VolumeRequest, apparmor, cgroup, cgroup_metrics, disk, link_socket, listeners,
    namespace, nat, neighbours, pod_files, questions, redirect, rootfs, scan, setup, volume,
    volume_origin,
};
use crate::machine::identity;
use crate::pod::files::PodFiles;

/// Names of taps start so.
const TAP_PREFIX: &str = "pvtap";

/// Does the work in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHost;

impl HostOps for LocalHost {
    fn open_taps(&self, request: &TapsRequest) -> Result<Vec<Nic>, HostError> {
        let taps = || -> Result<Vec<Nic>, HostError> {
            let mut socket = RouteSocket::open()?;
            let links = scan::links(&mut socket)?;
            ensure_there(&links, &request.cards)?;
            let mut nics = Vec::with_capacity(links.len());
            for (number, link) in links.into_iter().enumerate() {
                let card = card(&request.cards, &link.name);
                nics.push(open_tap(&mut socket, number, link, card)?);
            }
            Ok(nics)
        };
        let mut nics = namespace::within(&request.namespace, taps)??;
        // Not inside: the kernel's workers would keep the namespace.
        for queue in nics.iter_mut().flat_map(|nic| &mut nic.queues) {
            queue.vhost = vhost();
        }
        Ok(nics)
    }

    fn set_macs(&self, request: &MacRequest) -> Result<(), HostError> {
        namespace::within(&request.namespace, || {
            let mut socket = RouteSocket::open()?;
            let links = scan::links(&mut socket)?;
            ensure_there(&links, &request.cards)?;
            for link in links {
                let asked = card(&request.cards, &link.name).and_then(|card| card.mac);
                let mac = asked.unwrap_or_else(|| identity::mac(&request.seed, &link.name));
                if link.mac != mac {
                    redirect::set_mac(&mut socket, link.index, mac)?;
                }
            }
            Ok(())
        })?
    }

    fn redirect(&self, request: &TapsRequest) -> Result<NetworkConfig, HostError> {
        namespace::within(&request.namespace, || {
            let mut socket = RouteSocket::open()?;
            let links = scan::links(&mut socket)?;
            let config = scan::network(&mut socket, &links)?;
            for (number, link) in links.iter().enumerate() {
                let tap = redirect::index_of(&mut socket, &format!("{TAP_PREFIX}{number}"))?;
                if card(&request.cards, &link.name).is_some_and(|card| card.nat) {
                    let address = ipv4_address(&config, &link.name)?;
                    let network = NatNetwork::of_card(number);
                    nat::join(&mut socket, link.index, tap, address, network)?;
                } else {
                    redirect::join(&mut socket, link.index, tap)?;
                }
            }
            Ok(config)
        })?
    }

    fn open_links(&self, request: &NetworkRequest) -> Result<Vec<LinkSocket>, HostError> {
        namespace::within(&request.namespace, || {
            let mut socket = RouteSocket::open()?;
            let links = scan::links(&mut socket)?;
            let config = scan::network(&mut socket, &links)?;
            let mut sockets = Vec::with_capacity(links.len());
            for (number, link) in links.into_iter().enumerate() {
                let tap = redirect::index_of(&mut socket, &format!("{TAP_PREFIX}{number}"))?;
                let gateways = gateways(&config, &link.name);
                let neighbours = neighbours::resolve(&mut socket, link.index, &gateways)?;
                let fd = link_socket::open(tap)?;
                questions::keep(&mut socket, tap)?;
                sockets.push(LinkSocket {
                    interface: link.name,
                    fd,
                    neighbours,
                });
            }
            Ok(sockets)
        })?
    }

    fn release_network(&self, request: &NetworkRequest) -> Result<(), HostError> {
        if !namespace::exists(&request.namespace) {
            return Ok(());
        }
        namespace::within(&request.namespace, || {
            let mut socket = RouteSocket::open()?;
            for link in scan::links(&mut socket)? {
                redirect::part(&mut socket, link.index)?;
            }
            Ok(())
        })?
    }

    fn listen(&self, request: &NetworkRequest) -> Result<NamespaceListeners, HostError> {
        Ok(listeners::open(&request.namespace)?)
    }

    fn mount_rootfs(&self, request: &RootfsRequest) -> Result<(), HostError> {
        Ok(rootfs::mount_all(request)?)
    }

    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        Ok(rootfs::unmount_all(target)?)
    }

    fn open_path(&self, path: &Path) -> Result<OwnedFd, HostError> {
        let opened = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        opened.map_err(|errno| failed_open(path)(errno.into()))
    }

    fn inspect_volume(&self, path: &Path) -> Result<VolumeOrigin, HostError> {
        volume_origin::of(path).map_err(failed_open(path))
    }

    fn open_volume(&self, request: &VolumeRequest) -> Result<OwnedFd, HostError> {
        volume::open_volume(request).map_err(failed_open(&request.path))
    }

    fn open_disk(&self, request: &DiskRequest) -> Result<File, HostError> {
        disk::open(request).map_err(|source| HostError::Disk {
            major: request.major,
            minor: request.minor,
            source,
        })
    }

    fn apparmor_policy(&self, profile: &str) -> Result<Vec<u8>, HostError> {
        Ok(apparmor::policy(profile)?)
    }

    fn set_oom_score(&self, score: i64) -> Result<(), HostError> {
        Ok(setup::set_oom_score(score)?)
    }

    fn enter_cgroup(&self, leaf: &Path) -> Result<Vec<PathBuf>, HostError> {
        Ok(cgroup::join(leaf)?)
    }

    fn write_pod_files(&self, files: &PodFiles) -> Result<(), HostError> {
        Ok(pod_files::write(files)?)
    }

    fn metrics(&self, leaf: &Path) -> Result<Metrics, HostError> {
        Ok(cgroup_metrics::of(leaf)?)
    }

    fn confine(&self, request: &ConfineRequest) -> Result<(), HostError> {
        Ok(cgroup::confine(&request.cgroup, &request.cpus)?)
    }
}

/// What is asked of the card of an interface.
fn card<'c>(cards: &'c [CardRequest], interface: &str) -> Option<&'c CardRequest> {
    cards.iter().find(|card| card.name == interface)
}

fn ensure_there(links: &[Link], cards: &[CardRequest]) -> Result<(), HostError> {
    let is_there = |card: &&CardRequest| links.iter().any(|link| link.name == card.name);
    match cards.iter().find(|card| !is_there(card)) {
        None => Ok(()),
        Some(card) => Err(HostError::NoInterface {
            name: card.name.clone(),
            there: match links {
                [] => "none".to_owned(),
                [..] => {
                    let names = links.iter().map(|link| link.name.as_str());
                    names.collect::<Vec<_>>().join(", ")
                }
            },
        }),
    }
}

/// The tap beside an interface, in the namespace of the calling thread. It carries what the
/// interface does, also where its card is told of less.
fn open_tap(
    socket: &mut RouteSocket,
    number: usize,
    link: Link,
    card: Option<&CardRequest>,
) -> Result<Nic, HostError> {
    let mtu = match card.and_then(|card| card.mtu) {
        None => link.mtu,
        Some(wanted) if u32::from(wanted) <= link.mtu => wanted.into(),
        Some(wanted) => {
            return Err(HostError::Mtu {
                interface: link.name,
                most: link.mtu,
                wanted,
            });
        }
    };
    let tap_name = format!("{TAP_PREFIX}{number}");
    let count = card.map_or(1, |card| card.queues.into());
    let queues = Tap::open_queues(&tap_name, count).map_err(|source| HostError::Tap {
        interface: link.name.clone(),
        source,
    })?;
    redirect::bring_up(socket, &tap_name, link.mtu)?;
    let queues = queues.into_iter().map(|tap| NicQueue { tap, vhost: None });
    let nat = card.filter(|card| card.nat);
    Ok(Nic {
        name: link.name,
        mac: link.mac,
        mtu,
        queues: queues.collect(),
        nat: nat.map(|_| NatNetwork::of_card(number)),
    })
}

/// The first IPv4 address of an interface.
fn ipv4_address(config: &NetworkConfig, interface: &str) -> Result<Ipv4Addr, HostError> {
    let found = config.interfaces.iter().find(|it| it.name == interface);
    let addresses = found.into_iter().flat_map(|it| &it.addresses);
    let mut addresses =
        addresses.filter_map(|address| <[u8; 4]>::try_from(address.ip.as_slice()).ok());
    let first = addresses.next().map(Ipv4Addr::from);
    first.ok_or_else(|| HostError::NoAddress(interface.to_owned()))
}

/// The kernel's worker for a pair of a card's queues. A host that has none is no less of a host: the VM's own
/// thread moves the frames then.
fn vhost() -> Option<VhostNet> {
    VhostNet::open()
        .inspect_err(|error| tracing::debug!(%error, "no vhost-net: frames go through the VMM"))
        .ok()
}

fn failed_open(path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Open {
        path: path.to_owned(),
        source,
    }
}

/// The IPv6 gateways behind an interface that are not known by their link-local address.
fn gateways(config: &NetworkConfig, interface: &str) -> Vec<Ipv6Addr> {
    let hops = config.routes.iter().flat_map(|route| &route.next_hops);
    let hops = hops.filter(|hop| hop.interface == interface);
    let addresses = hops.filter_map(|hop| <[u8; 16]>::try_from(hop.gateway.as_slice()).ok());
    let mut gateways: Vec<_> = addresses
        .map(Ipv6Addr::from)
        .filter(|gateway| !gateway.is_unicast_link_local())
        .collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

/// Whether an interface is one of our taps.
pub(super) fn is_tap(name: &str) -> bool {
    name.starts_with(TAP_PREFIX)
}
