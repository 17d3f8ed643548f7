//! Machines without a pod: what the VMM alone promises.

mod boot_disk;
mod boot_images;
mod boot_partitions;
mod boot_stage;
mod cards;
mod consoles;
mod ends;
mod file_systems;
mod guest;
mod machine_agent;
mod machines;
mod restarts;
mod shapes;
mod volume_group;

use crate::case::{Case, Tier};

pub fn cases() -> Vec<Case> {
    [
        machines::cases(),
        boot_stage::cases(),
        file_systems::cases(),
        machine_agent::cases(),
        shapes::cases(),
        cards::cases(),
        consoles::cases(),
        ends::cases(),
        restarts::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn case(name: &'static str, run: fn() -> anyhow::Result<()>) -> Case {
    Case::new(Tier::Gate, name, run)
}

/// A case for the long run.
fn long(name: &'static str, run: fn() -> anyhow::Result<()>) -> Case {
    Case::new(Tier::Long, name, run)
}
