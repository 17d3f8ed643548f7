//! The node: a machine with KVM and containerd on which everything that needs them runs.
//!
//! It is Debian's kernel, a read-only root with one of the containerd versions (`machine`), a folder that we share with it (`rundir`)
//! and an emulator where the machine has no virtualization of its own (`qemu`).

mod containerd;
pub mod debian;
mod label;
mod machine;
pub mod qemu;
mod rundir;
mod session;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

pub use containerd::Containerd;
use qemu::{Clock, Machine};
use rundir::RunDir;
pub use rundir::Share;

use crate::kernel::KernelArgs;
use crate::{dist, images, packages, process};

/// Memory of the node in MiB, unless an option says otherwise.
const MEMORY_MIB: u32 = 6144;

/// `cargo xtask node …`
#[derive(clap::Subcommand)]
pub enum NodeCommand {
    /// Build the node for both containerd versions.
    Build,
    /// Run a command in a node, with our stdin, stdout and stderr and its exit code.
    Run {
        #[command(flatten)]
        options: NodeOptions,
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// A shell in a node.
    Shell {
        #[command(flatten)]
        options: NodeOptions,
    },
}

/// What a node has beside the release.
#[derive(clap::Args, Clone)]
pub struct NodeOptions {
    /// The containerd version.
    #[arg(long, value_name = "VERSION", default_value = "1.7")]
    pub containerd: Containerd,
    /// Show a folder of this machine in the node.
    #[arg(long = "mount", value_name = "FOLDER:PATH", value_parser = parse_share)]
    pub shares: Vec<Share>,
    /// Serve more images: an OCI layout, or a folder of layouts.
    #[arg(long, value_name = "FOLDER")]
    pub images: Vec<PathBuf>,
    /// Serve the images of machines, too (minutes to build, when they are not cached).
    #[arg(long)]
    pub machines: bool,
    /// Whether the node's clock counts time or instructions.
    #[arg(long, default_value = "wall")]
    pub clock: Clock,
    /// Set a variable for the command.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub variables: Vec<(String, String)>,
    /// Memory of the node.
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    pub memory: u32,
    /// Install this release folder (`target/dist/podvisor-VERSION`) instead of building one.
    #[arg(long, value_name = "FOLDER", conflicts_with = "bare")]
    pub release: Option<PathBuf>,
    /// Install no release.
    #[arg(long)]
    pub bare: bool,
    /// Runs beside other nodes: its output comes in whole lines that begin with the containerd version, and it has no input.
    #[arg(skip)]
    pub is_one_of_several: bool,
    /// A command that takes longer than this hangs; the node is then ended.
    #[arg(skip)]
    pub limit: Option<Duration>,
}

impl NodeOptions {
    /// A node with nothing but a release.
    pub fn new(containerd: Containerd, release: PathBuf) -> Self {
        Self {
            containerd,
            shares: Vec::new(),
            images: Vec::new(),
            machines: false,
            clock: Clock::Wall,
            variables: Vec::new(),
            memory: MEMORY_MIB,
            release: Some(release),
            bare: false,
            is_one_of_several: false,
            limit: None,
        }
    }
}

/// Carries a node command out.
///
/// # Errors
/// Something does not build, or the node does not come up.
pub fn main(command: NodeCommand) -> Result<ExitCode> {
    packages::install()?;
    match command {
        NodeCommand::Build => {
            build()?;
            Ok(ExitCode::SUCCESS)
        }
        NodeCommand::Run { options, command } => Ok(run(&options, &command)?.into()),
        NodeCommand::Shell { options } => shell(&options),
    }
}

/// Builds what every node needs: kernel, root file systems, container images.
///
/// # Errors
/// Something cannot be fetched or written.
pub fn build() -> Result<()> {
    machine::kernel()?;
    for containerd in Containerd::ALL {
        machine::root(containerd)?;
    }
    images::build()?;
    images::machine::build()?;
    Ok(())
}

/// Starts a node, runs a command in it and returns the command's exit code.
///
/// # Errors
/// Something does not build, or the node does not come up.
pub fn run(options: &NodeOptions, command: &[String]) -> Result<u8> {
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    run_script(options, &format!("exec {}\n", words.join(" ")))
}

fn shell(options: &NodeOptions) -> Result<ExitCode> {
    if !std::io::stdin().is_terminal() {
        return Ok(run_script(options, "exec bash\n")?.into());
    }
    let size = process::output(stty().arg("size"))?;
    let (rows, columns) = size.split_once(' ').context("stty tells no size")?;
    let script = format!(
        "cd /root; export TERM=xterm-256color; \
         exec script --quiet --return --command 'stty rows {rows} cols {columns}; exec bash' /dev/null\n"
    );
    let terminal = RawTerminal::enter()?;
    let code = run_script(options, &script);
    drop(terminal);
    Ok(code?.into())
}

fn run_script(options: &NodeOptions, command: &str) -> Result<u8> {
    let mut shares = options.shares.clone();
    if !options.bare {
        let release = match &options.release {
            Some(folder) => folder.clone(),
            None => dist::build(&KernelArgs::default())?,
        };
        let name = release.file_name().context("not a release folder")?;
        shares.push(Share {
            path: format!("/node-release/{}", name.to_string_lossy()),
            folder: release,
        });
    }
    let mut layouts = vec![images::build()?];
    if options.machines {
        layouts.push(images::machine::build()?);
    }
    layouts.extend(options.images.iter().cloned());
    shares.extend(
        layouts
            .into_iter()
            .enumerate()
            .map(|(index, folder)| Share {
                folder,
                path: format!("/images/{index}"),
            }),
    );
    for share in &mut shares {
        share.folder = share
            .folder
            .canonicalize()
            .with_context(|| format!("cannot share {}", share.folder.display()))?;
    }
    let mut script = String::new();
    for (name, value) in &options.variables {
        script += &format!("export {name}={}\n", quoted(value));
    }
    script += command;
    let kernel = machine::kernel()?;
    let root = machine::root(options.containerd)?;
    let run = RunDir::create(options, &shares, &script)?;
    let label = options
        .is_one_of_several
        .then(|| options.containerd.version());
    let machine = Machine {
        kernel: &kernel,
        root: &root,
        run: &run,
        shares: &shares,
        clock: options.clock,
        memory_mib: options.memory,
        ports: &[],
        monitor: None,
    };
    session::run(machine, label, options.limit)
}

/// This terminal without line editing, echo and signals, which the node's own terminal does; restored when dropped.
struct RawTerminal {
    before: String,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = process::output(stty().arg("--save"))?;
        process::output(stty().args(["raw", "-echo"]))?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = stty().arg(&self.before).status();
    }
}

/// stty on our terminal, wherever its streams lead.
fn stty() -> Command {
    let mut command = Command::new("stty");
    command.arg("--file=/dev/tty");
    command
}

/// A word as the shell reads it back.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn parse_share(text: &str) -> Result<Share, String> {
    match text.rsplit_once(':') {
        Some((folder, path)) if path.starts_with('/') && !path.contains(char::is_whitespace) => {
            Ok(Share {
                folder: PathBuf::from(folder),
                path: path.to_owned(),
            })
        }
        _ => Err("not FOLDER:/PATH".into()),
    }
}

/// A `NAME=VALUE` of a command line.
///
/// # Errors
/// The name is not one that a shell takes.
pub fn parse_variable(text: &str) -> Result<(String, String), String> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    match text.split_once('=') {
        Some((name, value)) if is_name(name) => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word_for_the_shell() {
        let word = "it's $HOME \"x\"\n";
        let echoed = Command::new("bash")
            .args(["-c", &format!("printf %s {}", quoted(word))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(echoed.stdout).unwrap(), word);
    }

    #[test]
    fn a_share_needs_an_absolute_path_in_the_node() {
        assert_eq!(parse_share("a:b:/c").unwrap().folder, PathBuf::from("a:b"));
        assert!(parse_share("a:c").is_err());
        assert!(parse_share("a").is_err());
        assert!(parse_share("a:/b c").is_err());
    }

    #[test]
    fn a_variable_has_a_shell_name() {
        assert_eq!(parse_variable("A_1=x=y").unwrap().1, "x=y");
        assert!(parse_variable("1A=x").is_err());
        assert!(parse_variable("A;B=x").is_err());
        assert!(parse_variable("A").is_err());
    }
}
