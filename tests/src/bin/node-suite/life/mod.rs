//! The lives of pods, containers and images, step by step as a kubelet or the CRI validation suite
//! takes them: what is so for runc's pods is so for ours.

mod containers;
mod ends;
mod images;
mod pods;

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    let containerds = [pods::cases(), containers::cases()];
    let guests = [ends::cases(), images::cases()];
    let guests = guests.into_iter().flatten().map(Case::shared);
    containerds.into_iter().flatten().chain(guests).collect()
}
