//! Which files a ConfigMap, Secret or projected volume holds. Pure.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::atomic_writer::Projected;
use crate::manifest::Objects;
use crate::manifest::names::{Name, RelativePath};
use crate::manifest::objects::KeyedData;
use crate::manifest::volume::{
    ConfigMapVolume, FileMode, KeyToPath, ObjectProjection, ProjectedVolume, SecretVolume,
};

/// The files by their paths in the volume.
pub type Files = BTreeMap<String, Projected>;

/// The files of a ConfigMap volume.
pub fn of_config_map(volume: &ConfigMapVolume, objects: &Objects) -> Result<Files> {
    let data = objects.config_maps.get(&volume.name);
    let selection = Selection::new("ConfigMap", &volume.name, &volume.items, volume.optional);
    selection.files(data, volume.default_mode)
}

/// The files of a Secret volume.
pub fn of_secret(volume: &SecretVolume, objects: &Objects) -> Result<Files> {
    let data = objects.secrets.get(&volume.secret_name);
    let selection = Selection::new(
        "Secret",
        &volume.secret_name,
        &volume.items,
        volume.optional,
    );
    selection.files(data, volume.default_mode)
}

/// The files of a projected volume; a later source's file takes an earlier one's place.
pub fn of_projected(volume: &ProjectedVolume, objects: &Objects) -> Result<Files> {
    let mut files = Files::new();
    for source in &volume.sources {
        let parts = [
            ("ConfigMap", &source.config_map, &objects.config_maps),
            ("Secret", &source.secret, &objects.secrets),
        ];
        for (kind, projection, objects) in parts {
            let Some(ObjectProjection {
                name,
                items,
                optional,
            }) = projection
            else {
                continue;
            };
            let selection = Selection::new(kind, name, items, *optional);
            files.extend(selection.files(objects.get(name), volume.default_mode)?);
        }
    }
    Ok(files)
}

/// Which keys of which object.
struct Selection<'a> {
    kind: &'static str,
    name: &'a Name,
    items: &'a [KeyToPath],
    optional: bool,
}

impl<'a> Selection<'a> {
    fn new(kind: &'static str, name: &'a Name, items: &'a [KeyToPath], optional: bool) -> Self {
        Self {
            kind,
            name,
            items,
            optional,
        }
    }

    /// Every key, or those of `items`.
    fn files(&self, data: Option<&KeyedData>, default_mode: FileMode) -> Result<Files> {
        let Some(data) = data else {
            if self.optional {
                return Ok(Files::new());
            }
            bail!("{} {} is not in the manifest", self.kind, self.name);
        };
        let file = |content: &Vec<u8>, mode: FileMode| Projected {
            content: content.clone(),
            mode: mode.bits(),
        };
        if self.items.is_empty() {
            let all = data.iter().map(|(key, content)| {
                (
                    RelativePath::from(key).as_str().to_owned(),
                    file(content, default_mode),
                )
            });
            return Ok(all.collect());
        }
        let mut files = Files::new();
        for KeyToPath { key, path, mode } in self.items {
            match data.get(key) {
                Some(content) => {
                    let file = file(content, mode.unwrap_or(default_mode));
                    files.insert(path.as_str().to_owned(), file);
                }
                None if self.optional => {}
                None => bail!("{} {} has no key {key}", self.kind, self.name),
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::testing::manifest;

    const OBJECTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n\
                           data: {a: '1', b: '2'}\n---\napiVersion: v1\nkind: Secret\n\
                           metadata: {name: key}\nstringData: {b: s3cret}\n";

    fn files(volume: &str) -> Result<Vec<(String, String, u32)>> {
        let spec =
            format!("  containers: [{{name: c, image: i}}]\n  volumes: [{{name: v, {volume}}}]");
        let manifest = manifest(&spec, OBJECTS);
        let volume = &manifest.pod.spec.volumes[0];
        let files = match volume {
            v if v.config_map.is_some() => {
                of_config_map(v.config_map.as_ref().unwrap(), &manifest.objects)
            }
            v if v.secret.is_some() => of_secret(v.secret.as_ref().unwrap(), &manifest.objects),
            v => of_projected(v.projected.as_ref().unwrap(), &manifest.objects),
        }?;
        Ok(files
            .into_iter()
            .map(|(path, file)| (path, String::from_utf8(file.content).unwrap(), file.mode))
            .collect())
    }

    #[test]
    fn every_key_is_a_file_unless_items_choose() {
        assert_eq!(
            files("configMap: {name: settings}").unwrap(),
            [
                ("a".into(), "1".into(), 0o644),
                ("b".into(), "2".into(), 0o644)
            ]
        );
        assert_eq!(
            files("configMap: {name: settings, items: [{key: b, path: x/y, mode: 0400}]}").unwrap()
                [0]
            .0,
            "x/y"
        );
        assert_eq!(
            files("secret: {secretName: key, defaultMode: 256}").unwrap(),
            [("b".into(), "s3cret".into(), 0o400)]
        );
    }

    #[test]
    fn later_sources_take_the_place_of_earlier_ones() {
        let merged = files(
            "projected: {sources: [{configMap: {name: settings}}, {secret: {name: key}}, \
             {secret: {name: absent, optional: true}}]}",
        )
        .unwrap();
        let contents: Vec<_> = merged
            .iter()
            .map(|(path, content, _)| (path.as_str(), content.as_str()))
            .collect();
        assert_eq!(contents, [("a", "1"), ("b", "s3cret")]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = files("configMap: {name: absent}").unwrap_err().to_string();
        assert_eq!(error, "ConfigMap absent is not in the manifest");
        let error = files("secret: {secretName: key, items: [{key: x, path: x}]}").unwrap_err();
        assert_eq!(error.to_string(), "Secret key has no key x");
    }
}
