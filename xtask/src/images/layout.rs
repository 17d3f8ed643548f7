//! Writes an OCI image layout of one uncompressed layer (opencontainers/image-spec: image-layout.md, manifest.md, config.md).
//!
//! Uncompressed, because the node that unpacks it may be emulated.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A reference to a blob (opencontainers/image-spec: descriptor.md).
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Value>,
}

/// Writes a layout of the tar archive `layer` to `folder`, under each of `names`. An image without a `command` says nothing of one.
///
/// # Errors
/// The folder cannot be written.
pub fn write(folder: &Path, layer: &Path, names: &[String], command: &[String]) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = add_file(&blobs, layer, "application/vnd.oci.image.layer.v1.tar")?;
    let runs = if command.is_empty() {
        json!({})
    } else {
        json!({
            "Cmd": command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        })
    };
    let config = add_json(
        &blobs,
        &json!({
            "architecture": "amd64",
            "os": "linux",
            "config": runs,
            "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
        }),
        "application/vnd.oci.image.config.v1+json",
    )?;
    let manifest = add_json(
        &blobs,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
        }),
        MANIFEST,
    )?;
    let named = names.iter().map(|name| Descriptor {
        annotations: Some(json!({ "org.opencontainers.image.ref.name": name })),
        ..manifest.clone()
    });
    let index = json!({ "schemaVersion": 2, "manifests": named.collect::<Vec<_>>() });
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// Stores a JSON blob and returns its descriptor.
fn add_json(blobs: &Path, content: &Value, media_type: &'static str) -> Result<Descriptor> {
    let bytes = content.to_string();
    let hex = hex::encode(Sha256::digest(&bytes));
    fs::write(blobs.join(&hex), &bytes)?;
    Ok(Descriptor {
        media_type,
        digest: format!("sha256:{hex}"),
        size: bytes.len() as u64,
        annotations: None,
    })
}

/// Stores a copy of a file as a blob and returns its descriptor.
fn add_file(blobs: &Path, file: &Path, media_type: &'static str) -> Result<Descriptor> {
    let hex = digest_of_file(file)?;
    let size = fs::copy(file, blobs.join(&hex))?;
    Ok(Descriptor {
        media_type,
        digest: format!("sha256:{hex}"),
        size,
        annotations: None,
    })
}

fn digest_of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut chunk)?;
        let Some(read) = chunk.get(..len).filter(|read| !read.is_empty()) else {
            return Ok(hex::encode(hash.finalize()));
        };
        hash.update(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_the_same_manifest_whose_blobs_exist() {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer.tar");
        fs::write(&layer, "layer").unwrap();
        let layout = folder.path().join("image");
        let names = ["a.example/x:1".to_owned(), "a.example/x:2".to_owned()];
        write(&layout, &layer, &names, &["sh".to_owned()]).unwrap();

        let read =
            |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |digest: &Value| {
            let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            layout.join("blobs/sha256").join(hex)
        };
        let index = read(&layout.join("index.json"));
        assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
        let manifest = read(&blob(&index["manifests"][0]["digest"]));
        assert_eq!(
            index["manifests"][0]["digest"],
            index["manifests"][1]["digest"]
        );
        assert_eq!(
            fs::read(blob(&manifest["layers"][0]["digest"])).unwrap(),
            b"layer"
        );
        let config = read(&blob(&manifest["config"]["digest"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
    }
}
