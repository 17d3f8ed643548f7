//! Looks at what a machine may boot from, one source after the other.

use podvisor_boot_entries::{Entry, discover};
use podvisor_proto::agent::v1::boot_source::Kind;
use podvisor_proto::agent::v1::{BootMachineRequest, BootMachineResponse};

use super::block;
use super::images::{self, Images};
use super::kernel_modules::KernelModules;
use super::mounted::Mounted;
use super::{BootStageError, command_line, initial_image, kexec, step};

/// Entries of a source that are tried. The first that is no kernel is rarely followed by a better one.
const MAX_TRIES: usize = 8;
/// Longest command line a kernel may take, of all (COMMAND_LINE_SIZE is at most 4096).
const MAX_COMMAND_LINE: usize = 4096;

/// Loads the first kernel that can be booted from the request's sources.
///
/// # Errors
///
/// [`BootStageError::Nothing`] says what every source holds.
pub fn boot(
    request: &BootMachineRequest,
    modules: &mut KernelModules,
) -> Result<BootMachineResponse, BootStageError> {
    if request.sources.is_empty() {
        return Err(BootStageError::Malformed("no source to boot from"));
    }
    let mut refused = Vec::new();
    for (number, source) in (0..).zip(&request.sources) {
        let booted = match &source.kind {
            Some(Kind::DiskSerial(serial)) => from_disk(serial, request, modules)?,
            Some(Kind::Tree(name)) => initial_image::from_tree(name, request)?,
            None => return Err(BootStageError::Malformed("a source of no kind")),
        };
        match booted {
            Ok(response) => {
                return Ok(BootMachineResponse {
                    source: number,
                    ..response
                });
            }
            Err(why) => refused.push(why),
        }
    }
    Err(BootStageError::Nothing(refused))
}

/// What a source led to: a loaded kernel, or why there is none, in words.
pub type Booted = Result<BootMachineResponse, String>;

fn from_disk(
    serial: &str,
    request: &BootMachineRequest,
    modules: &mut KernelModules,
) -> Result<Booted, BootStageError> {
    let found = block::wait_for_disk(serial).map_err(step("look for disks"))?;
    let Some(disk) = found else {
        let serials = block::serials().join(", ");
        return Ok(Err(format!(
            "disk {serial}: it is not there, only {serials}"
        )));
    };
    let mounted = Mounted::all_of(&disk, 0, modules)?;
    Ok(from_volumes(&mounted, request).map_err(|why| {
        let mut words = mounted.contents.clone();
        words.extend(why);
        format!("disk {serial} ({}): {}", disk.name, words.join(", "))
    }))
}

/// Tries the entries of a disk's volumes; `Err` has what was found and is of no use.
fn from_volumes(
    mounted: &Mounted,
    request: &BootMachineRequest,
) -> Result<BootMachineResponse, Vec<String>> {
    let mut found = discover(&mounted.volumes);
    if !request.preferred_entry.is_empty() {
        found.prefer(&request.preferred_entry);
    }
    let mut findings = found.findings;
    if found.entries.is_empty() && findings.is_empty() && !mounted.volumes.is_empty() {
        findings.push("no boot configuration and no kernel on them".to_owned());
    }
    for entry in found.entries.iter().take(MAX_TRIES) {
        match load(entry, mounted, request) {
            Ok(response) => return Ok(response),
            // The same kernel often comes by several entries.
            Err(why) if findings.contains(&why) => {}
            Err(why) => findings.push(why),
        }
    }
    Err(findings)
}

fn load(
    entry: &Entry,
    mounted: &Mounted,
    request: &BootMachineRequest,
) -> Result<BootMachineResponse, String> {
    let images = images::open(entry, &mounted.trees)?;
    let response = start(&images, &entry.kernel.path, &request.kernel_args)?;
    let volume = mounted.volumes.get(entry.kernel.volume);
    Ok(BootMachineResponse {
        volume: volume.map_or(String::new(), |volume| match &volume.label {
            Some(label) => format!("{} ({label})", volume.device),
            None => volume.device.clone(),
        }),
        entry_id: entry.id.clone(),
        entry_title: entry.title.clone(),
        initrds: entry.initrds.iter().map(|file| file.path.clone()).collect(),
        ..response
    })
}

/// Loads a kernel. The answer has what is known of it alone.
pub fn start(images: &Images, path: &str, more: &[String]) -> Result<BootMachineResponse, String> {
    let command_line = command_line::complete(&images.args, more);
    if command_line.len() >= MAX_COMMAND_LINE {
        let len = command_line.len();
        return Err(format!(
            "kernel {path} would get a command line of {len} bytes"
        ));
    }
    kexec::load(&images.kernel, images.initrd.as_ref(), &command_line)
        .map_err(|error| format!("kernel {path} cannot be loaded: {error}"))?;
    Ok(BootMachineResponse {
        kernel: path.to_owned(),
        command_line,
        kernel_release: images.release.clone(),
        ..BootMachineResponse::default()
    })
}
