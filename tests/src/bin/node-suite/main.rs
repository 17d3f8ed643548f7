//! The tests that run inside a node: `node-suite [SELECTION] [FILTER]` (`selection`).
//!
//! Each case counts, before and after, what a pod could leave on the node and fails when the
//! counts differ. Cases run one after another: the counts are the node's.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

mod attach;
mod bad_input;
mod case;
mod command_line;
#[cfg(test)]
mod compatibility;
mod connections;
mod disks;
mod failures;
mod guest_memory;
mod in_pod;
mod life;
mod lifecycle;
mod logs;
mod machine;
mod network;
mod pod_networks;
mod pods;
mod ports;
mod refusals;
mod resources;
mod sandboxer;
mod security;
mod selection;
mod statistics;
mod streams;
mod terminal;
mod times;
mod vm;
mod volumes;
mod watch;

use case::Case;
use selection::Selection;
use times::Time;
use watch::Watch;

fn cases() -> Vec<Case> {
    let containerds = [
        pods::cases(),
        streams::cases(),
        attach::cases(),
        command_line::cases(),
        logs::cases(),
        ports::cases(),
        life::cases(),
        lifecycle::cases(),
        bad_input::cases(),
        failures::cases(),
        security::of_handlers(),
        volumes::of_handlers(),
    ];
    let guests = [
        network::cases(),
        connections::cases(),
        pod_networks::cases(),
        resources::cases(),
        guest_memory::cases(),
        statistics::cases(),
        refusals::cases(),
        security::cases(),
        volumes::cases(),
        disks::cases(),
        vm::cases(),
        machine::cases(),
    ];
    let guests = guests.into_iter().flatten().map(Case::shared);
    containerds.into_iter().flatten().chain(guests).collect()
}

fn main() -> ExitCode {
    if let Some(done) = in_pod::run() {
        return done;
    }
    let (selection, words) = match Selection::of_arguments(std::env::args()) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("node-suite: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut arguments = Arguments::from_iter(words);
    arguments.test_threads = Some(1);
    let all = cases()
        .into_iter()
        .map(|case| (case.name.to_owned(), case))
        .chain(sandboxer::again(cases()));
    let trials = selection
        .choose(all)
        .map(|(name, case)| trial(name, case))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    times::show_longest();
    conclusion.exit_code()
}

fn trial(name: String, case: Case) -> Trial {
    Trial::test(name.clone(), move || {
        let _watch = Watch::start(&name, case.tier.limit());
        let _time = Time::start(&name);
        case.run()
            .map_err(|error| Failed::from(format!("{error:#}")))
    })
}
