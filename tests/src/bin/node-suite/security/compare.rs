//! The same container in a VM pod and in a pod of runc.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::SecurityProfile;
use podvisor_proto::cri::v1::security_profile::ProfileType;
use podvisor_tests::{Container, ContainerBuilder, Pod, wait};

/// The last line of what a compared container prints.
const END: &str = "--";

/// How a container is changed from the default one.
pub type Change = for<'p, 'c> fn(ContainerBuilder<'p, 'c>) -> ContainerBuilder<'p, 'c>;

/// Runs `script` in a container of each pod, as its first process and as an exec, and yields what
/// all of them printed.
///
/// # Errors
/// When two of them differ.
pub fn same(pods: [&Pod<'_>; 2], name: &str, change: Change, script: &str) -> Result<String> {
    let script = format!("({script}) 2>&1; echo {END}");
    let mut printed = Vec::new();
    for pod in pods {
        let container = pod
            .container(name)
            .script(&format!("{script}; sleep infinity"));
        // containerd's own profile guards the node and stays out of the guest.
        let container = change(container.security(|security| {
            security.apparmor = Some(SecurityProfile {
                profile_type: ProfileType::Unconfined.into(),
                ..SecurityProfile::default()
            });
        }));
        let container = container.start().with_context(|| name.to_owned())?;
        printed.push(first_output(&container)?);
        printed.push(container.shell(&script)? + "\n");
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    let [vm, vm_exec, runc, runc_exec] = &printed[..] else {
        anyhow::bail!("two pods are compared");
    };
    ensure!(vm == runc, "{name}: in the VM\n{vm}with runc\n{runc}");
    ensure!(
        vm_exec == runc_exec,
        "{name}: an exec in the VM\n{vm_exec}with runc\n{runc_exec}"
    );
    Ok(vm.clone())
}

fn first_output(container: &Container<'_, '_>) -> Result<String> {
    wait::until("output of a container", Duration::from_secs(60), || {
        let output = container.log()?.stdout;
        Ok(output.ends_with(&format!("{END}\n")).then_some(output))
    })
}
