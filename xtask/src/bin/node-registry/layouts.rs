//! OCI image layouts in folders, looked up by image name or by digest.
//!
//! Layout and annotations: opencontainers/image-spec, image-layout.md and annotations.md.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The annotation that names an entry of `index.json`; here always the full image name with host and tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

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
    annotations: std::collections::BTreeMap<String, String>,
}

/// A manifest that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The blob's file.
    pub path: PathBuf,
    /// What the index says it is.
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

    /// Finds a manifest by tag or digest. `host` is the registry that the client believes it talks to; without one the
    /// repository's name alone decides.
    pub fn manifest(&self, host: Option<String>, name: &str, reference: &str) -> Option<Manifest> {
        let wanted = match &host {
            Some(host) => format!("{host}/{name}:{reference}"),
            None => format!("/{name}:{reference}"),
        };
        let is_wanted = |descriptor: &Descriptor| {
            descriptor.digest == reference
                || descriptor.annotations.get(REF_NAME).is_some_and(|full| {
                    *full == wanted || host.is_none() && full.ends_with(&wanted)
                })
        };
        self.layouts().find_map(|layout| {
            let index: Index =
                serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
            let found = index.manifests.into_iter().find(is_wanted)?;
            Some(Manifest {
                path: blob_path(&layout, &found.digest)?,
                media_type: found.media_type,
                digest: found.digest,
            })
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

    fn folder_with_pause() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("pause");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs::write(layout.join("oci-layout"), "{}").unwrap();
        fs::write(blob_path(&layout, DIGEST).unwrap(), "manifest").unwrap();
        let index = format!(
            r#"{{"manifests":[{{"mediaType":"m","digest":"{DIGEST}","size":8,
                "annotations":{{"{REF_NAME}":"registry.k8s.io/pause:3.8"}}}}]}}"#
        );
        fs::write(layout.join("index.json"), index).unwrap();
        folder
    }

    #[test]
    fn a_name_is_found_under_its_own_host_only() {
        let folder = folder_with_pause();
        let layouts = Layouts::new(vec![folder.path().to_owned()]);
        let find = |host: Option<&str>| layouts.manifest(host.map(str::to_owned), "pause", "3.8");
        assert_eq!(find(Some("registry.k8s.io")).unwrap().digest, DIGEST);
        assert_eq!(find(Some("docker.io")), None);
        assert!(find(None).is_some());
    }

    #[test]
    fn a_digest_leads_to_its_blob() {
        let folder = folder_with_pause();
        let layouts = Layouts::new(vec![folder.path().join("pause")]);
        assert!(layouts.blob(DIGEST).is_some());
        assert!(layouts.manifest(None, "any", DIGEST).is_some());
    }

    #[test]
    fn a_digest_that_is_a_path_finds_nothing() {
        let folder = folder_with_pause();
        let layouts = Layouts::new(vec![folder.path().to_owned()]);
        assert_eq!(layouts.blob("sha256:../../index.json"), None);
    }
}
