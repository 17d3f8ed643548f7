//! The benchmarks' programs, built by cargo and found in its messages.

use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;

use crate::progress::Step;
use crate::{dist, process, workspace};

/// A benchmark's program.
pub struct Bench {
    /// As `[[bench]]` names it.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
}

/// What the benchmarks' crate consists of.
pub struct Programs {
    /// The benchmarks.
    pub benches: Vec<Bench>,
    /// Programs that benchmarks start, at the paths that were compiled into them.
    pub helpers: Vec<PathBuf>,
}

/// The parts of a compiler message that name a program (cargo's documentation, "External tools", "Artifact messages").
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds every benchmark, as static programs: `boot` measures the start of one, and a dynamic linker would take a
/// millisecond of it.
///
/// # Errors
/// One does not build.
pub fn build() -> Result<Programs> {
    let step = Step::start("benchmarks");
    let mut command = workspace::cargo();
    command
        .args(["bench", "--quiet", "--no-run"])
        .args(["--package", "podvisor-benches"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--target", dist::TRIPLE, "--target-dir"])
        .arg(workspace::target().join("static"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let messages = process::run_for_output(&step, &mut command)?;
    step.done();
    Ok(programs(&messages))
}

fn programs(messages: &str) -> Programs {
    let mut programs = Programs {
        benches: Vec::new(),
        helpers: Vec::new(),
    };
    for line in messages.lines() {
        let Ok(artifact) = serde_json::from_str::<Artifact>(line) else {
            continue;
        };
        let (Some(target), Some(program)) = (artifact.target, artifact.executable) else {
            continue;
        };
        let is = |kind: &str| target.kind.iter().any(|word| word == kind);
        if artifact.reason == "compiler-artifact" && is("bench") {
            let name = target.name;
            programs.benches.push(Bench { name, program });
        } else if artifact.reason == "compiler-artifact" && is("bin") {
            programs.helpers.push(program);
        }
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_messages() {
        let artifact = |kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"n","kind":["{kind}"]}},"executable":{executable}}}"#
            )
        };
        let messages = [
            artifact("bench", r#""/t/deps/n-1""#),
            artifact("bin", r#""/t/n""#),
            artifact("lib", "null"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ]
        .join("\n");
        let programs = programs(&messages);
        assert_eq!(programs.benches.len(), 1);
        assert_eq!(programs.benches[0].program, PathBuf::from("/t/deps/n-1"));
        assert_eq!(programs.helpers, [PathBuf::from("/t/n")]);
    }
}
