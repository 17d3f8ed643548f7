//! Devices and paths as scripts name them.

use super::GrubError;
use super::interpreter::Interpreter;
use crate::volume::{File, Volume};

/// What `search` looks for.
#[derive(Clone, Copy)]
enum By {
    Uuid,
    Label,
    File,
}

impl By {
    fn finds(self, volume: &Volume, wanted: &str) -> bool {
        let same = |have: &Option<String>| {
            have.as_deref()
                .is_some_and(|have| have.eq_ignore_ascii_case(wanted))
        };
        match self {
            Self::Uuid => same(&volume.uuid),
            Self::Label => volume.label.as_deref() == Some(wanted),
            Self::File => volume.tree.kind(wanted).is_some(),
        }
    }
}

impl Interpreter<'_> {
    /// The file or folder that `path` names: `(device)/path`, or `/path` on the device of `$root`.
    pub(super) fn locate(&self, path: &str) -> Option<File> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.variables.get("root"), path),
        };
        if !path.starts_with('/') {
            return None;
        }
        let mut volumes = (0..).zip(self.volumes);
        let (volume, _) = volumes.find(|(_, volume)| {
            let is_device = volume.grub_names.iter().any(|name| name == device);
            is_device && volume.tree.kind(path).is_some()
        })?;
        let path = path.to_owned();
        Some(File { volume, path })
    }

    /// `search [--fs-uuid|--label|--file] [--set[=NAME]] [--hint… X] WHAT`, and its older forms
    /// `search.fs_uuid WHAT NAME`.
    pub(super) fn search(
        &mut self,
        command: &str,
        arguments: &[String],
    ) -> Result<bool, GrubError> {
        let mut by = match command {
            "search.fs_uuid" => Some(By::Uuid),
            "search.fs_label" => Some(By::Label),
            "search.file" => Some(By::File),
            _ => None,
        };
        let mut variable = by.is_none().then(String::new);
        let mut wanted = None;
        let mut words = arguments.iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => by = Some(By::Uuid),
                "--label" | "-l" | "--fs-label" => by = Some(By::Label),
                "--file" | "-f" => by = Some(By::File),
                // `-s NAME`; `--set NAME` is another way that GRUB takes.
                "--set" | "-s" => {
                    // With nothing but one more word, that word is what is looked for.
                    if words.len() > 1 || wanted.is_some() {
                        variable = words.next().cloned();
                    } else {
                        variable = Some("root".to_owned());
                    }
                }
                "--hint" | "-h" => drop(words.next()),
                option if option.starts_with("--set=") => {
                    variable = option.strip_prefix("--set=").map(str::to_owned);
                }
                // --no-floppy, --hint-bios=… and whatever else narrows the search.
                option if option.starts_with("--") => {}
                word if wanted.is_none() => wanted = Some(word.to_owned()),
                word if variable.is_none() => variable = Some(word.to_owned()),
                // Hints of the older forms.
                _ => {}
            }
        }
        let Some(wanted) = wanted else {
            return Ok(false);
        };
        let by = by.unwrap_or(By::File);
        let found = self.volumes.iter().find(|volume| by.finds(volume, &wanted));
        let Some(name) = found.and_then(|volume| volume.grub_names.first().cloned()) else {
            return Ok(false);
        };
        match variable.as_deref() {
            Some("") => {}
            Some(variable) => self.variables.set(variable, &name)?,
            None => self.variables.set("root", &name)?,
        }
        Ok(true)
    }

    /// `probe --set=NAME --fs-uuid|--label DEVICE`.
    pub(super) fn probe(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let mut variable = None;
        let mut device = "";
        let mut field: fn(&Volume) -> Option<&String> = |_| None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--set" | "-s" => variable = words.next().map(String::as_str),
                "--fs-uuid" | "-u" => field = |volume| volume.uuid.as_ref(),
                "--label" | "-l" => field = |volume| volume.label.as_ref(),
                "--part-uuid" => field = |volume| volume.partition_uuid.as_ref(),
                option if option.starts_with("--set=") => variable = option.strip_prefix("--set="),
                word => device = word.trim_matches(['(', ')']),
            }
        }
        let mut volumes = self.volumes.iter();
        let found = volumes.find(|volume| volume.grub_names.iter().any(|name| name == device));
        let Some(value) = found.and_then(field) else {
            return Ok(false);
        };
        if let Some(variable) = variable {
            self.variables.set(variable, value)?;
        }
        Ok(true)
    }
}
