//! Overlay mounts of many layers: mount(2) takes one page of data, so that long lists of layers
//! are written relative to the folder they have in common.

use std::path::{Path, PathBuf};

/// What mount(2) copies of its data.
pub(super) const DATA_LEN_MAX: usize = 4095;

/// Data for an overlay with its paths relative to a folder to be in when mounting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RelativeData {
    pub(super) folder: PathBuf,
    pub(super) data: String,
}

/// Rewrites `lowerdir=` of an overlay's data relative to the deepest folder that holds all layers.
/// None when there is nothing to rewrite.
pub(super) fn relative(data: &[String]) -> Option<RelativeData> {
    let lower = data
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let folder = common_folder(&layers)?;
    let shortened: Option<Vec<&str>> = layers
        .iter()
        .map(|layer| layer.strip_prefix(&folder).ok()?.to_str())
        .collect();
    let shortened = format!("lowerdir={}", shortened?.join(":"));
    let options = data.iter().map(|option| {
        if option.starts_with("lowerdir=") {
            shortened.as_str()
        } else {
            option.as_str()
        }
    });
    let data = options.collect::<Vec<_>>().join(",");
    Some(RelativeData { folder, data })
}

fn common_folder(layers: &[&Path]) -> Option<PathBuf> {
    let mut folder = layers.first()?.parent()?;
    while !layers
        .iter()
        .all(|layer| layer.starts_with(folder) && *layer != folder)
    {
        folder = folder.parent()?;
    }
    folder.is_absolute().then(|| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_become_relative_to_what_they_share() {
        let data =
            ["index=off", "lowerdir=/s/11/fs:/s/2/fs", "upperdir=/s/3/fs"].map(str::to_owned);
        let relative = relative(&data).unwrap();
        assert_eq!(relative.folder, Path::new("/s"));
        assert_eq!(
            relative.data,
            "index=off,lowerdir=11/fs:2/fs,upperdir=/s/3/fs"
        );
    }

    #[test]
    fn a_layer_inside_another_keeps_a_name() {
        let relative = relative(&["lowerdir=/a/b:/a/b/c".to_owned()]).unwrap();
        assert_eq!(
            (relative.folder.as_path(), relative.data.as_str()),
            (Path::new("/a"), "lowerdir=b:b/c")
        );
        assert_eq!(super::relative(&["lowerdir=a:b".to_owned()]), None);
    }
}
