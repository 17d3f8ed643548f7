//! Which runtime handler runs a pod, and what the pod costs beyond its containers.

use anyhow::{Context, Result, bail};

use crate::manifest::pod::ResourceList;
use crate::manifest::{Manifest, runtime_class};

/// The RuntimeClass that comes with this release.
const OWN_CLASS: &str = include_str!("../../../runtimeclass/runtimeclass.yaml");

/// What a RuntimeClass says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Empty for the runtime's default.
    pub handler: String,
    pub overhead: ResourceList,
}

impl Class {
    /// The class that a manifest names: one of its own documents, or the one of this release.
    /// `handler` takes the place of what the class says.
    pub fn of(manifest: &Manifest, handler: Option<&str>) -> Result<Self> {
        let spec = &manifest.pod.spec;
        let class = match &spec.runtime_class_name {
            None => None,
            Some(name) => {
                let own = runtime_class(OWN_CLASS).context("the release's own RuntimeClass")?;
                let given = manifest.objects.runtime_classes.get(name).cloned();
                given.or_else(|| (own.name() == name).then_some(own))
            }
        };
        let handler = match (handler, &class, &spec.runtime_class_name) {
            (Some(handler), _, _) => handler.to_owned(),
            (None, Some(class), _) => class.handler.to_string(),
            (None, None, None) => String::new(),
            (None, None, Some(name)) => bail!(
                "spec.runtimeClassName: no RuntimeClass {name} is in the manifest; \
                 add it, or name a handler with --runtime-handler"
            ),
        };
        let of_class = class.map(|class| class.overhead.pod_fixed);
        Ok(Self {
            handler,
            overhead: spec.overhead.or(of_class).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::testing::manifest;

    const CONTAINER: &str = "  containers: [{name: a, image: i}]\n";

    fn class(spec: &str, documents: &str, handler: Option<&str>) -> Result<Class> {
        Class::of(&manifest(&format!("{CONTAINER}{spec}"), documents), handler)
    }

    #[test]
    fn the_releases_own_class_is_known() {
        assert_eq!(
            class("  runtimeClassName: podvisor", "", None)
                .unwrap()
                .handler,
            "podvisor"
        );
    }

    #[test]
    fn a_class_of_the_manifest_wins_and_the_pods_overhead_over_it() {
        let document = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: podvisor}\n\
                        handler: other\noverhead: {podFixed: {memory: 10Mi}}\n";
        let given = class("  runtimeClassName: podvisor", document, None).unwrap();
        assert_eq!(given.handler, "other");
        assert_eq!(given.overhead.memory.unwrap().units(), 10 << 20);
        let spec = "  runtimeClassName: podvisor\n  overhead: {memory: 20Mi}";
        let own = class(spec, document, None).unwrap();
        assert_eq!(own.overhead.memory.unwrap().units(), 20 << 20);
    }

    #[test]
    fn a_handler_can_be_named_and_an_unknown_class_cannot() {
        assert_eq!(class("", "", None).unwrap().handler, "");
        assert_eq!(
            class("  runtimeClassName: x", "", Some("runc"))
                .unwrap()
                .handler,
            "runc"
        );
        assert!(class("  runtimeClassName: x", "", None).is_err());
    }
}
