//! `podvisor run`: a pod manifest on this machine, as the kubelet would run it.

mod atomic_writer;
mod cgroup;
mod claims;
mod class;
mod containers;
mod folder;
mod images;
pub mod logs;
mod loop_device;
mod machine;
mod narrator;
mod pod;
mod projection;
mod restart;
mod stop;
mod timeline;
mod tour;

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cri::Cri;
use crate::manifest::Manifest;
use class::Class;
use containers::{Containers, exit_code};
use narrator::Narrator;
use pod::Pod;
use stop::StopSignals;
use tour::Tour;

pub use claims::ClaimPath;
pub use folder::PodFolder;
pub use narrator::Detail;
pub use pod::{log_directory, remove_files, stop_containers};

/// What `podvisor run` is asked for.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// `-` for stdin.
    pub manifest: PathBuf,
    /// The runtime's socket.
    pub address: PathBuf,
    /// Takes the place of the RuntimeClass's.
    pub runtime_handler: Option<String>,
    /// Places of claims.
    pub claims: Vec<ClaimPath>,
    /// Remove everything at the end.
    pub remove: bool,
    pub detail: Detail,
}

/// Runs a manifest's pod to its end; answers the exit code of the container that failed first, or
/// 128 and the signal's number when a signal ended the pod.
pub async fn run(options: &RunOptions) -> Result<i32> {
    let narrator = Narrator::new(options.detail);
    let manifest = Manifest::parse(&read(&options.manifest)?)
        .with_context(|| format!("{}", options.manifest.display()))?;
    let class = Class::of(&manifest, options.runtime_handler.as_deref())?;
    let cri = Cri::connect(&options.address).await?;
    let mut tour = match options.detail {
        Detail::Tour => Some(Tour::begin()?),
        Detail::Quiet | Detail::Phases => None,
    };
    let mut pod = Pod::plan(&cri, &manifest, &class, &options.claims)?;
    let metadata = &manifest.pod.metadata;
    let handler = if class.handler.is_empty() {
        "(default)"
    } else {
        &class.handler
    };
    narrator.tell(&format!(
        "pod {}/{}, runtime handler {handler}",
        metadata.namespace(),
        metadata.name
    ));
    let mut signals = StopSignals::listen()?;
    let made = bring_up(&mut pod, &class, options, &narrator);
    let result = match signals.note_during(made, &narrator).await {
        Ok(None) => run_containers(&pod, &mut signals, &narrator, tour.as_mut()).await,
        Ok(Some(number)) => Ok(128 + number),
        Err(error) => Err(error),
    };
    let torn_down = tear_down(&pod, options.remove || result.is_err(), &narrator).await;
    let code = first_failure(result, torn_down, &narrator)?;
    if let Some(tour) = &tour
        && options.remove
    {
        tour.end(&narrator).await?;
    }
    Ok(code)
}

/// The result, unless cleaning up failed; of two failures the first is the one to act on.
fn first_failure(result: Result<i32>, cleanup: Result<()>, narrator: &Narrator) -> Result<i32> {
    if let (Err(_), Err(second)) = (&result, &cleanup) {
        narrator.warn(&format!("then, while cleaning up: {second:#}"));
    }
    let code = result?;
    cleanup.map(|()| code)
}

fn read(manifest: &Path) -> Result<String> {
    if manifest == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .context("cannot read stdin")?;
        return Ok(text);
    }
    fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))
}

async fn bring_up(
    pod: &mut Pod<'_>,
    class: &Class,
    options: &RunOptions,
    narrator: &Narrator,
) -> Result<()> {
    let began = Instant::now();
    pod.prepare()?;
    narrator.phase("volumes and control group made", began.elapsed());
    pod.start_sandbox(&class.handler, &options.address, narrator)
        .await
}

/// Runs the containers until all have ended or a signal asks to stop.
async fn run_containers(
    pod: &Pod<'_>,
    signals: &mut StopSignals,
    narrator: &Narrator,
    tour: Option<&mut Tour>,
) -> Result<i32> {
    let stopping = Cell::new(false);
    let containers = Containers::new(pod, narrator, &stopping);
    let work = async {
        if let Some(failed) = containers.run_init().await? {
            return Ok(failed.exit_code);
        }
        let started = containers.start_all().await?;
        let first = started
            .first()
            .map(|first| (first.name().to_owned(), first.id().to_owned()));
        let look_around = async {
            match (tour, &first) {
                (Some(tour), Some((name, id))) => {
                    tour.look_around(pod.cri, (name, id), narrator).await
                }
                _ => Ok(()),
            }
        };
        let (ended, toured) = tokio::join!(containers.finish(started), look_around);
        toured?;
        Ok(exit_code(&ended?))
    };
    signals.stop_on_signal(work, pod, &stopping, narrator).await
}

/// Stops the pod, and removes it when asked to.
async fn tear_down(pod: &Pod<'_>, remove: bool, narrator: &Narrator) -> Result<()> {
    narrator.phase("pod stopped", pod.stop().await?);
    if remove {
        narrator.phase("pod removed", pod.remove().await?);
    }
    Ok(())
}
