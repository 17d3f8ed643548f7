//! The tests that take too long for every change, and those that ran under another containerd version only. Each of the former
//! runs in a node of its own, the latter in one. What passed is remembered with the commit it passed with, so that an
//! interrupted run goes on where it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::{LONG_LIMIT, NodeArgs, Nodes};
use crate::node::Containerd;
use crate::{process, workspace};

/// Stands for all tests that a change is tested with under another containerd version only.
const OTHER_VERSIONS_SHARE: &str = "other_versions_share";

/// Runs every long test that has not passed with this commit.
///
/// # Errors
/// Something does not build, no test has the asked-for name, or a test fails.
pub fn run(args: &NodeArgs) -> Result<()> {
    let nodes = Nodes::build(args)?;
    let names = names(&nodes.suite, args.filter.as_deref())?;
    if names.is_empty() {
        bail!("no long test has such a name");
    }
    let commit = commit()?;
    nodes.in_each(|containerd| {
        let mut failed = Vec::new();
        for name in &names {
            let record = Record::of(containerd, name);
            if record.passed_with(&commit) {
                eprintln!(
                    "xtask: {name} passed under containerd {} before",
                    containerd.version()
                );
                continue;
            }
            let arguments = if name == OTHER_VERSIONS_SHARE {
                vec!["--rest".to_owned(), containerd.number().to_string()]
            } else {
                ["--long", "--exact", name].map(str::to_owned).to_vec()
            };
            if nodes.run_suite(containerd, &arguments, LONG_LIMIT)? == 0 {
                record.pass(&commit)?;
            } else {
                failed.push(name.as_str());
            }
        }
        if !failed.is_empty() {
            bail!(
                "failed under containerd {}: {}",
                containerd.version(),
                failed.join(", ")
            );
        }
        Ok(())
    })
}

/// The names of the long tests; listing them needs no node.
fn names(suite: &Path, filter: Option<&str>) -> Result<Vec<String>> {
    let listed = process::output(Command::new(suite).args(["--long", "--list"]))?;
    Ok(listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .chain([OTHER_VERSIONS_SHARE])
        .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
        .map(str::to_owned)
        .collect())
}

/// What is checked out; a changed tree never counts as tested.
fn commit() -> Result<Option<String>> {
    let described = process::output(
        Command::new("git")
            .args([
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
                "--exclude=*",
            ])
            .current_dir(workspace::root()),
    )?;
    Ok((!described.ends_with("-dirty")).then_some(described))
}

/// The file that remembers with which commit a test passed.
struct Record(PathBuf);

impl Record {
    fn of(containerd: Containerd, name: &str) -> Self {
        let folder = workspace::target().join("long");
        Self(folder.join(format!("{}-{name}", containerd.version())))
    }

    fn passed_with(&self, commit: &Option<String>) -> bool {
        commit.is_some() && fs::read_to_string(&self.0).ok() == *commit
    }

    fn pass(&self, commit: &Option<String>) -> Result<()> {
        let Some(commit) = commit else { return Ok(()) };
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.0, commit)?;
        Ok(())
    }
}
