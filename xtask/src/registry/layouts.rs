//! OCI image layouts in folders, looked up by image name or by digest.
//!
//! Layout and annotations: opencontainers/image-spec, image-layout.md and annotations.md.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The annotations that name an entry of `index.json` in full, with host and tag: containerd's own, and the specification's, which
/// other tools fill with the tag alone.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn has_name(&self, wanted: impl Fn(&str) -> bool) -> bool {
        NAMES
            .iter()
            .filter_map(|key| self.annotations.get(*key))
            .any(|name| wanted(name))
    }
}

/// What tells a manifest from an index (opencontainers/image-spec: manifest.md, image-index.md).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
}

impl Document {
    fn media_type(self) -> String {
        let is_index = self.manifests.is_some();
        self.media_type.unwrap_or_else(|| {
            let kind = if is_index { "index" } else { "manifest" };
            format!("application/vnd.oci.image.{kind}.v1+json")
        })
    }
}

/// A manifest that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The blob's file.
    pub path: PathBuf,
    /// What it is.
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
}

/// The folders that are served.
#[derive(Debug)]
pub struct Layouts {
    folders: Vec<PathBuf>,
}

impl Layouts {
    /// Serves `folders`, each a layout or a folder of layouts.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Finds a manifest or an index by tag or digest. `host` is the registry that the client believes it talks to; without one
    /// the repository's name alone decides.
    pub fn manifest(&self, host: Option<&str>, name: &str, reference: &str) -> Option<Manifest> {
        if reference.starts_with("sha256:") {
            return self.manifest_of_digest(reference);
        }
        let wanted = format!("{}/{name}:{reference}", host.unwrap_or_default());
        let is_wanted = |full: &str| full == wanted || host.is_none() && full.ends_with(&wanted);
        self.layouts().find_map(|layout| {
            let index: Index =
                serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
            let mut entries = index.manifests.into_iter();
            let found = entries.find(|entry| entry.has_name(is_wanted))?;
            Some(Manifest {
                path: blob_path(&layout, &found.digest)?,
                media_type: found.media_type,
                digest: found.digest,
            })
        })
    }

    /// A manifest that an index leads to stands in no `index.json`: what it is, it says itself.
    fn manifest_of_digest(&self, digest: &str) -> Option<Manifest> {
        let path = self.blob(digest)?;
        let document: Document = serde_json::from_reader(File::open(&path).ok()?).ok()?;
        Some(Manifest {
            path,
            media_type: document.media_type(),
            digest: digest.to_owned(),
        })
    }

    /// The file of a blob, in whichever layout has it.
    pub fn blob(&self, digest: &str) -> Option<PathBuf> {
        self.layouts()
            .filter_map(|layout| blob_path(&layout, digest))
            .find(|file| file.exists())
    }

    fn layouts(&self) -> impl Iterator<Item = PathBuf> {
        let is_layout = |folder: &Path| folder.join("oci-layout").exists();
        let mut found = Vec::new();
        let mut pending = self.folders.clone();
        while let Some(folder) = pending.pop() {
            if is_layout(&folder) {
                found.push(folder);
            } else if let Ok(entries) = fs::read_dir(&folder) {
                pending.extend(
                    entries
                        .flatten()
                        .map(|entry| entry.path())
                        .filter(|path| path.is_dir()),
                );
            }
        }
        found.into_iter()
    }
}

/// `blobs/sha256/HEX`; nothing else than hexadecimal digits gets into the path.
fn blob_path(layout: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| layout.join("blobs/sha256").join(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn folder_with_pause(annotation: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("pause");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs::write(layout.join("oci-layout"), "{}").unwrap();
        fs::write(blob_path(&layout, DIGEST).unwrap(), r#"{"manifests":[]}"#).unwrap();
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"m","digest":"{DIGEST}","size":8,
                "annotations":{{{annotation}}}}}]}}"#
        );
        fs::write(layout.join("index.json"), index).unwrap();
        folder
    }

    const NAMED: &str = r#""org.opencontainers.image.ref.name":"registry.k8s.io/pause:3.8""#;

    #[test]
    fn a_name_is_found_under_its_own_host_only() {
        let folder = folder_with_pause(NAMED);
        let layouts = Layouts::new(vec![folder.path().to_owned()]);
        let find = |host| layouts.manifest(host, "pause", "3.8");
        assert_eq!(find(Some("registry.k8s.io")).unwrap().digest, DIGEST);
        assert_eq!(find(Some("docker.io")), None);
        assert!(find(None).is_some());
    }

    #[test]
    fn an_export_of_containerds_is_found_by_its_full_name() {
        let folder = folder_with_pause(
            r#""org.opencontainers.image.ref.name":"3.8","io.containerd.image.name":"localhost:5000/pause:3.8""#,
        );
        let layouts = Layouts::new(vec![folder.path().to_owned()]);
        let found = layouts.manifest(Some("localhost:5000"), "pause", "3.8");
        assert_eq!(found.unwrap().media_type, "m");
    }

    #[test]
    fn a_digest_leads_to_its_blob_which_says_what_it_is() {
        let folder = folder_with_pause(NAMED);
        let layouts = Layouts::new(vec![folder.path().join("pause")]);
        assert!(layouts.blob(DIGEST).is_some());
        let found = layouts
            .manifest(Some("other.example"), "any", DIGEST)
            .unwrap();
        assert_eq!(found.media_type, "application/vnd.oci.image.index.v1+json");
    }

    #[test]
    fn a_digest_that_is_a_path_finds_nothing() {
        let folder = folder_with_pause(NAMED);
        let layouts = Layouts::new(vec![folder.path().to_owned()]);
        assert_eq!(layouts.blob("sha256:../../index.json"), None);
    }
}
