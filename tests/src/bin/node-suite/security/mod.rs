//! Security contexts: what a container may do in its guest is what runc would let it do on the
//! node.

mod compare;
mod confinement;
mod identity;
mod processes;
mod refusals;
mod sysctls;
mod users;

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    [
        identity::cases(),
        confinement::cases(),
        processes::cases(),
        sysctls::cases(),
        refusals::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Cases of what containerd lets only those handlers have that it has asked for their features.
pub fn of_handlers() -> Vec<Case> {
    users::cases()
}
