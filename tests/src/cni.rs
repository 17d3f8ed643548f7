//! Another network for pods than the node's own, for as long as a test takes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::StatusRequest;

use crate::{Cri, wait};

/// Comes before the node's own configuration.
const CONFIGURATION: &str = "/etc/cni/net.d/00-test.conflist";
/// A plugin of ours among the others: what it does is [`SCRIPT`].
const PLUGIN: &str = "/usr/lib/cni/podvisor-test";
const SCRIPT: &str = "/run/podvisor-test-network";
/// Hands its input on as its result, after the script has had its turn in the pod's namespace.
const PLUGIN_PROGRAM: &str = r#"#!/bin/sh
input=$(cat)
case $CNI_COMMAND in
ADD)
    sh -e /run/podvisor-test-network >&2 || {
        echo '{"cniVersion": "1.0.0", "code": 100, "msg": "the test script failed"}'
        exit 1
    }
    echo "$input" | jq -c .prevResult ;;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}' ;;
esac
"#;

/// A network that new pods get in place of the node's own.
pub struct PodNetworks<'c> {
    cri: &'c Cri,
    links: Vec<String>,
}

impl<'c> PodNetworks<'c> {
    /// Makes the bridge plugin's `ranges` (JSON, as host-local has them) on the bridge `bridge`
    /// the network of new pods. Then `script` runs for each of them, on the node with the
    /// namespace in `CNI_NETNS`.
    ///
    /// # Errors
    /// When containerd does not take it.
    pub fn set(cri: &'c Cri, bridge: &str, ranges: &str, script: &str) -> Result<Self> {
        fs::write(PLUGIN, PLUGIN_PROGRAM)?;
        fs::set_permissions(PLUGIN, fs::Permissions::from_mode(0o755))?;
        fs::write(SCRIPT, script)?;
        let name = format!("test-{bridge}");
        let configuration = format!(
            r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [
                {{"type": "bridge", "bridge": "{bridge}", "isGateway": true,
                  "ipam": {{"type": "host-local", "ranges": {ranges}}}}},
                {{"type": "podvisor-test"}}]}}"#
        );
        let networks = Self {
            cri,
            links: vec![bridge.to_owned()],
        };
        fs::write(CONFIGURATION, configuration)?;
        networks.wait_for(|loaded| loaded.contains(&name))?;
        Ok(networks)
    }

    /// Has a link of the node removed at the end, too.
    #[must_use]
    pub fn with_link(mut self, name: &str) -> Self {
        self.links.push(name.to_owned());
        self
    }

    fn wait_for(&self, reached: impl Fn(&str) -> bool) -> Result<()> {
        wait::until("new pod network", Duration::from_secs(30), || {
            let request = StatusRequest { verbose: true };
            let status = self
                .cri
                .call("Status", |mut c| async move { c.status(request).await })?;
            let loaded = status
                .info
                .get("cniconfig")
                .context("no CNI in the status")?;
            Ok(reached(loaded).then_some(()))
        })
    }
}

impl Drop for PodNetworks<'_> {
    fn drop(&mut self) {
        let restore = || {
            fs::remove_file(CONFIGURATION)?;
            self.wait_for(|loaded| !loaded.contains("test-"))?;
            for link in &self.links {
                let deleted = Command::new("ip").args(["link", "delete", link]).status()?;
                ensure!(deleted.success(), "cannot delete {link}");
            }
            anyhow::Ok(())
        };
        if let Err(error) = restore() {
            eprintln!("the node's pod network is not as it was: {error:#}");
        }
    }
}
