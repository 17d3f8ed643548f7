//! From an entry to files that kexec takes.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use podvisor_boot_entries::uki::{Section, Uki};
use podvisor_boot_entries::{Entry, Origin, bzimage};

use super::kexec::MemoryFile;
use super::tree::Tree;

/// A kernel with what it is started with.
#[derive(Debug)]
pub struct Images {
    /// The kernel.
    pub kernel: File,
    /// Its initial image.
    pub initrd: Option<File>,
    /// Its own command line.
    pub args: String,
    /// Its release, where its file tells.
    pub release: String,
}

/// Opens what an entry names.
///
/// # Errors
///
/// Why that cannot be started, in words.
pub fn open(entry: &Entry, trees: &[Tree]) -> Result<Images, String> {
    let path = &entry.kernel.path;
    let tree = trees.get(entry.kernel.volume).ok_or("names no volume")?;
    let file = tree
        .file(path)
        .map_err(|error| format!("kernel {path} cannot be opened: {error}"))?;
    if entry.origin == Origin::Uki {
        return unified(entry, tree, &file);
    }
    let release = release(&file).map_err(|why| format!("kernel {path} {why}"))?;
    Ok(Images {
        kernel: file,
        initrd: initrd(entry, trees)?,
        args: entry.args.clone(),
        release,
    })
}

fn release(file: &File) -> Result<String, String> {
    let mut header = Vec::new();
    let read = file
        .take(bzimage::HEADER_LEN as u64)
        .read_to_end(&mut header);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    bzimage::release(&header).map_err(|error| error.to_string())
}

/// The initial image: a file as it is, or several as one.
fn initrd(entry: &Entry, trees: &[Tree]) -> Result<Option<File>, String> {
    let mut files = Vec::new();
    for initrd in &entry.initrds {
        let path = &initrd.path;
        let tree = trees.get(initrd.volume).ok_or("names no volume")?;
        let file = tree.file(path);
        files
            .push(file.map_err(|error| format!("initial image {path} cannot be opened: {error}"))?);
    }
    if files.len() < 2 {
        return Ok(files.pop());
    }
    let joined =
        join(&mut files).map_err(|error| format!("initial images cannot be read: {error}"));
    joined.map(Some)
}

fn join(files: &mut [File]) -> io::Result<File> {
    let mut joined = MemoryFile::new("initrd")?;
    for file in files {
        joined.append(file)?;
    }
    Ok(joined.into_file())
}

/// The sections of a unified image, as files in memory.
fn unified(entry: &Entry, tree: &Tree, file: &File) -> Result<Images, String> {
    let path = &entry.kernel.path;
    let image = Uki::open(tree, path).map_err(|error| format!("image {path} {error}"))?;
    let part = |name: &str, sections: &[Section]| {
        let joined = join_sections(name, file, sections);
        joined.map_err(|error| format!("image {path} cannot be read: {error}"))
    };
    let kernel = part("kernel", &[image.linux])?;
    let found = release(&kernel).map_err(|why| format!("the kernel of image {path} {why}"))?;
    let initrd = match image.initrds.as_slice() {
        [] => None,
        sections => Some(part("initrd", sections)?),
    };
    let args = if entry.args.is_empty() {
        image.command_line.unwrap_or_default()
    } else {
        entry.args.clone()
    };
    Ok(Images {
        kernel,
        initrd,
        args,
        release: image.uname.unwrap_or(found),
    })
}

fn join_sections(name: &str, file: &File, sections: &[Section]) -> io::Result<File> {
    let mut joined = MemoryFile::new(name)?;
    for section in sections {
        let mut reader = file.try_clone()?;
        reader.seek(SeekFrom::Start(section.offset))?;
        joined.append(&mut reader.take(section.len))?;
    }
    let mut file = joined.into_file();
    file.rewind()?;
    Ok(file)
}
