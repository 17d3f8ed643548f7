//! Environment variables, and `$(VAR)` in commands.

use std::collections::BTreeMap;

use podvisor_proto::cri::v1::KeyValue;

use super::{PodContext, TranslateError};
use crate::manifest::container::{Container, EnvSource, EnvVar, KeySelector};
use crate::manifest::names::Name;
use crate::manifest::objects::KeyedData;
use crate::manifest::{Manifest, Objects};

/// A container's variables, in order; a later one of the same name has won.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    /// The variables of `envFrom`, then those of `env`, each of which may refer to earlier ones.
    pub fn of(
        manifest: &Manifest,
        container: &Container,
        context: &PodContext,
    ) -> Result<Self, TranslateError> {
        let source = Source {
            manifest,
            container,
            context,
        };
        let mut environment = Self::default();
        for from in &container.env_from {
            let objects = &manifest.objects;
            let references = [
                (&from.config_map_ref, &objects.config_maps, "ConfigMap"),
                (&from.secret_ref, &objects.secrets, "Secret"),
            ];
            for (reference, objects, kind) in references {
                let Some(reference) = reference else { continue };
                let Some(data) = objects.get(&reference.name) else {
                    if reference.optional {
                        continue;
                    }
                    return Err(source.missing(format!("{kind} {}", reference.name)));
                };
                for (key, value) in data {
                    let name = format!("{}{key}", from.prefix);
                    let value = source.text(&name, &format!("{kind} {}", reference.name), value)?;
                    environment.set(name, value);
                }
            }
        }
        for variable in &container.env {
            if let Some(value) = source.value(variable, &environment)? {
                environment.set(variable.name.clone(), value);
            }
        }
        Ok(environment)
    }

    /// Replaces each `$(NAME)` whose variable is set; `$$` stands for `$`.
    pub fn expand(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            let reference = after
                .strip_prefix('(')
                .and_then(|name| name.split_once(')'));
            rest = if let Some(after) = after.strip_prefix('$') {
                expanded.push('$');
                after
            } else if let Some((name, after)) = reference {
                match self.get(name) {
                    Some(value) => expanded.push_str(value),
                    None => expanded.extend(["$(", name, ")"]),
                }
                after
            } else {
                expanded.push('$');
                after
            };
        }
        expanded.push_str(rest);
        expanded
    }

    /// As CRI takes them.
    pub fn into_cri(self) -> Vec<KeyValue> {
        self.variables
            .into_iter()
            .map(|(key, value)| KeyValue { key, value })
            .collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        let variable = self.variables.iter().find(|(variable, _)| variable == name);
        variable.map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self
            .variables
            .iter_mut()
            .find(|(variable, _)| *variable == name)
        {
            Some(variable) => variable.1 = value,
            None => self.variables.push((name, value)),
        }
    }
}

/// Where values come from.
struct Source<'a> {
    manifest: &'a Manifest,
    container: &'a Container,
    context: &'a PodContext,
}

impl Source<'_> {
    fn value(
        &self,
        variable: &EnvVar,
        earlier: &Environment,
    ) -> Result<Option<String>, TranslateError> {
        let Objects {
            config_maps,
            secrets,
            ..
        } = &self.manifest.objects;
        match &variable.value_from {
            None => Ok(Some(
                earlier.expand(variable.value.as_deref().unwrap_or_default()),
            )),
            Some(EnvSource::ConfigMapKey(key)) => self.key(variable, key, config_maps, "ConfigMap"),
            Some(EnvSource::SecretKey(key)) => self.key(variable, key, secrets, "Secret"),
            Some(EnvSource::Field(field)) => {
                let value = self.field(&field.field_path);
                value.map(Some).ok_or_else(|| TranslateError::Field {
                    container: self.container.name.to_string(),
                    variable: variable.name.clone(),
                    field: field.field_path.clone(),
                })
            }
        }
    }

    fn key(
        &self,
        variable: &EnvVar,
        selector: &KeySelector,
        objects: &BTreeMap<Name, KeyedData>,
        kind: &str,
    ) -> Result<Option<String>, TranslateError> {
        let what = format!("{kind} {}, key {}", selector.name, selector.key);
        match objects
            .get(&selector.name)
            .and_then(|data| data.get(&selector.key))
        {
            Some(value) => self.text(&variable.name, &what, value).map(Some),
            None if selector.optional => Ok(None),
            None => Err(self.missing(what)),
        }
    }

    /// A field of the downward API.
    fn field(&self, path: &str) -> Option<String> {
        let metadata = &self.manifest.pod.metadata;
        let context = self.context;
        let subscript = |name: &str| {
            path.strip_prefix(name)?
                .strip_prefix("['")?
                .strip_suffix("']")
        };
        if let Some(key) = subscript("metadata.labels") {
            return Some(metadata.labels.get(key).cloned().unwrap_or_default());
        }
        if let Some(key) = subscript("metadata.annotations") {
            return Some(metadata.annotations.get(key).cloned().unwrap_or_default());
        }
        Some(match path {
            "metadata.name" => metadata.name.to_string(),
            "metadata.namespace" => metadata.namespace().to_owned(),
            "metadata.uid" => context.uid.clone(),
            "spec.nodeName" => context.node_name.clone(),
            "status.podIP" => context.ips.first().cloned().unwrap_or_default(),
            "status.podIPs" => context.ips.join(","),
            _ => return None,
        })
    }

    fn text(&self, variable: &str, what: &str, value: &[u8]) -> Result<String, TranslateError> {
        String::from_utf8(value.to_vec()).map_err(|_| TranslateError::NotText {
            container: self.container.name.to_string(),
            variable: variable.to_owned(),
            what: what.to_owned(),
        })
    }

    fn missing(&self, what: String) -> TranslateError {
        TranslateError::MissingObject {
            container: self.container.name.to_string(),
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{context, manifest};
    use super::*;
    use proptest::prelude::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Environment {
            variables: pairs.iter().map(own).collect(),
        }
    }

    fn of(container: &str, documents: &str) -> Result<Environment, TranslateError> {
        let spec = format!("  containers:\n  - name: app\n    image: i\n{container}");
        let manifest = manifest(&spec, documents);
        Environment::of(&manifest, &manifest.pod.spec.containers[0], &context())
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        let environment = environment(&[("A", "1"), ("B", "two")]);
        for (text, expanded) in [
            ("$(A)-$(B)", "1-two"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("100%", "100%"),
        ] {
            assert_eq!(environment.expand(text), expanded, "{text}");
        }
    }

    #[test]
    fn variables_come_from_values_objects_and_fields() {
        let environment = of(
            "
    envFrom:
    - {prefix: P_, configMapRef: {name: settings}}
    - {secretRef: {name: absent, optional: true}}
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
    - {name: BOTH, value: $(GREETING) $(P_who)}
    - {name: NOTHING, valueFrom: {secretKeyRef: {name: absent, key: k, optional: true}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: EMPTY}
",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n\
             data: {greeting: hello, who: world}\n",
        )
        .unwrap();
        assert_eq!(
            environment.variables,
            self::environment(&[
                ("P_greeting", "hello"),
                ("P_who", "world"),
                ("GREETING", "hello"),
                ("BOTH", "hello world"),
                ("POD", "web"),
                ("APP", "shop"),
                ("IP", "10.88.0.2"),
                ("EMPTY", ""),
            ])
            .variables
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = of("    envFrom: [{secretRef: {name: key}}]\n", "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "container app: Secret key is not in the manifest"
        );
        let error = of(
            "    env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]\n",
            "",
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("field status.hostIP is not supported"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn text_without_dollar_is_left_alone(text in "[^$]{0,60}") {
            prop_assert_eq!(environment(&[("A", "1")]).expand(&text), text);
        }

        #[test]
        fn no_text_panics(text in "[$()A-Ca ]{0,40}") {
            let _ = environment(&[("A", "$(B)"), ("B", "x")]).expand(&text);
        }
    }
}
