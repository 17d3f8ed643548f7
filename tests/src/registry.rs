//! Images made on the fly for the node's registry: busybox's files under other names and with a
//! configuration of their own.
//!
//! Formats: opencontainers/image-spec (image-layout.md, config.md), distribution/distribution
//! (manifest-v2-2.md).

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// What the registry serves: layouts in this folder, looked for at each request.
const SERVED: &str = "/images";
/// The layout whose files are taken.
const BUSYBOX: &str = "/images/0/busybox";

/// How an image is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An OCI manifest.
    Oci,
    /// A manifest of Docker's, version 2, schema 2.
    Docker,
    /// An OCI index of manifests, one a platform.
    Index,
}

impl Form {
    const fn manifest(self) -> &'static str {
        match self {
            Self::Oci | Self::Index => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    const fn config(self) -> &'static str {
        match self {
            Self::Oci | Self::Index => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    const fn layer(self) -> &'static str {
        match self {
            Self::Oci | Self::Index => "application/vnd.oci.image.layer.v1.tar",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar",
        }
    }
}

/// A reference to a blob (opencontainers/image-spec: descriptor.md).
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Value>,
}

/// Images that the registry serves as long as this lives.
pub struct Layout {
    folder: TempDir,
    entries: RefCell<Vec<Descriptor>>,
}

impl Layout {
    /// A layout without images.
    ///
    /// # Errors
    /// When the registry's folder cannot be written.
    pub fn create() -> Result<Self> {
        let folder = tempfile::tempdir_in(SERVED)?;
        fs::create_dir_all(folder.path().join("blobs/sha256"))?;
        let layout = Self {
            folder,
            entries: RefCell::default(),
        };
        layout.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        Ok(layout)
    }

    /// Adds an image whose `config` is what the image specification calls so (`Cmd`, `Env`, …)
    /// under full names, with host and tag, and yields the digest that it has under all of them.
    ///
    /// # Errors
    /// When busybox's layout is not there, or this one cannot be written.
    pub fn add(&self, form: Form, config: Value, names: &[&str]) -> Result<String> {
        let layer = busybox_layer(form)?;
        self.add_image(form, config, layer, names)
    }

    /// Adds an image with nothing but the files in `folder`.
    ///
    /// # Errors
    /// When they cannot be packed, or the layout not be written.
    pub fn add_folder(&self, folder: &Path, name: &str) -> Result<()> {
        let layer = self.folder.path().join("layer.tar");
        let packed = Command::new("tar")
            // containerd unpacks no sparse files.
            .args(["--create", "--format=gnu", "--file"])
            .arg(&layer)
            .arg("--directory")
            .arg(folder)
            .arg(".")
            .status()?;
        ensure!(packed.success(), "tar: {packed}");
        let mut hash = Sha256::new();
        let size = io::copy(&mut File::open(&layer)?, &mut hash)?;
        let hex = hex::encode(hash.finalize());
        fs::rename(&layer, self.folder.path().join("blobs/sha256").join(&hex))?;
        let digest = format!("sha256:{hex}");
        let layer = Descriptor {
            media_type: Form::Oci.layer().into(),
            digest: digest.clone(),
            size: usize::try_from(size)?,
            platform: None,
            annotations: None,
        };
        self.add_image(Form::Oci, json!({}), (layer, digest.into()), &[name])
            .map(drop)
    }

    fn add_image(
        &self,
        form: Form,
        config: Value,
        (layer, diff_id): (Descriptor, Value),
        names: &[&str],
    ) -> Result<String> {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = self.add_blob(&config, form.config())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": form.manifest(),
            "config": config,
            "layers": [layer],
        });
        let mut entry = self.add_blob(&manifest, form.manifest())?;
        if form == Form::Index {
            entry = self.add_index(&entry)?;
        }
        let mut entries = self.entries.borrow_mut();
        entries.extend(names.iter().map(|name| Descriptor {
            annotations: Some(json!({"org.opencontainers.image.ref.name": name})),
            ..entry.clone()
        }));
        self.write(
            "index.json",
            &json!({"schemaVersion": 2, "manifests": *entries}),
        )?;
        Ok(entry.digest)
    }

    /// Stores an index that leads to `manifest` on this platform only.
    fn add_index(&self, manifest: &Descriptor) -> Result<Descriptor> {
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let manifests = ["arm64", "amd64"].map(|architecture| Descriptor {
            platform: Some(json!({"architecture": architecture, "os": "linux"})),
            digest: match architecture {
                "amd64" => manifest.digest.clone(),
                _ => format!("sha256:{}", "0".repeat(64)),
            },
            ..manifest.clone()
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.add_blob(&index, INDEX)
    }

    /// Stores a blob and yields its descriptor.
    fn add_blob(&self, content: &Value, media_type: &str) -> Result<Descriptor> {
        let bytes = content.to_string();
        let hex = hex::encode(Sha256::digest(&bytes));
        self.write(&format!("blobs/sha256/{hex}"), content)?;
        Ok(Descriptor {
            media_type: media_type.into(),
            digest: format!("sha256:{hex}"),
            size: bytes.len(),
            platform: None,
            annotations: None,
        })
    }

    /// Writes a file that nobody sees half of.
    fn write(&self, name: &str, content: &Value) -> Result<()> {
        let (new, path) = (
            self.folder.path().join("new"),
            self.folder.path().join(name),
        );
        fs::write(&new, content.to_string())?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())
    }
}

/// Unpacks what is in the layers of a layout that the registry serves, and yields the disk among it.
///
/// # Errors
/// When there is no such layout, or no disk in it.
pub fn unpack_disk(layout: &str, folder: &Path) -> Result<PathBuf> {
    let served = fs::read_dir(SERVED)?.flatten();
    let blobs = served
        .map(|entry| entry.path().join(layout).join("blobs/sha256"))
        .find(|blobs| blobs.exists());
    let blobs = blobs.with_context(|| format!("no layout {layout} is served"))?;
    for blob in fs::read_dir(blobs)? {
        // Manifest and configuration are no archives.
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(blob?.path())
            .arg("--directory")
            .arg(folder)
            .output()?;
    }
    let disks = folder.join("disk");
    let disk = fs::read_dir(&disks)?.next();
    Ok(disk
        .with_context(|| format!("no disk in {layout}"))??
        .path())
}

/// The descriptor of busybox's only layer, and the digest of its files.
fn busybox_layer(form: Form) -> Result<(Descriptor, Value)> {
    let index = read(&Path::new(BUSYBOX).join("index.json"))?;
    let manifest = read(&blob(&index, "/manifests/0/digest")?)?;
    let config = read(&blob(&manifest, "/config/digest")?)?;
    let layer = Descriptor::deserialize(at(&manifest, "/layers/0")?)?;
    let layer = Descriptor {
        media_type: form.layer().into(),
        ..layer
    };
    Ok((layer, at(&config, "/rootfs/diff_ids/0")?.clone()))
}

fn at<'a>(document: &'a Value, pointer: &'static str) -> Result<&'a Value> {
    document.pointer(pointer).context(pointer)
}

/// The blob of busybox's whose digest is at `pointer`.
fn blob(document: &Value, pointer: &'static str) -> Result<PathBuf> {
    let digest = at(document, pointer)?.as_str();
    let hex = digest.and_then(|digest| digest.strip_prefix("sha256:"));
    let hex = hex.context(pointer)?;
    Ok(Path::new(BUSYBOX).join("blobs/sha256").join(hex))
}

fn read(path: &Path) -> Result<Value> {
    let content = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&content).with_context(|| path.display().to_string())
}
