//! The lives of pods, containers and images, step by step as a kubelet or the CRI validation suite
//! takes them: what is so for runc's pods is so for ours.

mod containers;
mod ends;
mod images;
mod pods;

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    [
        pods::cases(),
        containers::cases(),
        ends::cases(),
        images::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
