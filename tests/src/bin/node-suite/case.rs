//! A case: what it is called, when it runs, and that it leaves nothing behind.

use std::time::Duration;

use anyhow::{Context as _, Result};
use podvisor::leftovers::Leftovers;
use podvisor_tests::{Cri, Handler, wait};

/// Containerd removes a pod's last traces a moment after it answered.
const SETTLE: Duration = Duration::from_secs(20);

/// When a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// For every change, under every containerd version.
    Gate,
    /// For every change, under one of the versions: what it is about is the same under all.
    Shared,
    /// In `cargo xtask test long`.
    Long,
}

impl Tier {
    /// A case that takes longer than this will never end.
    pub const fn limit(self) -> Duration {
        match self {
            Self::Gate | Self::Shared => Duration::from_secs(10 * 60),
            Self::Long => Duration::from_secs(60 * 60),
        }
    }
}

/// One named test.
pub struct Case {
    pub name: &'static str,
    pub tier: Tier,
    run: Box<dyn FnOnce() -> Result<()> + Send>,
}

impl Case {
    /// A case that needs no containerd.
    pub fn new(tier: Tier, name: &'static str, run: fn() -> Result<()>) -> Self {
        Self {
            name,
            tier,
            run: Box::new(run),
        }
    }

    /// The same case, run under one containerd version instead of all, unless it is a long one.
    pub fn shared(self) -> Self {
        let tier = match self.tier {
            Tier::Gate => Tier::Shared,
            other => other,
        };
        Self { tier, ..self }
    }

    /// The same case with the VM pods of another handler.
    pub fn with_vm_pods_of(self, handler: &'static str) -> Self {
        let run = self.run;
        Self {
            run: Box::new(move || Handler::with_vm_pods_of(handler, run)),
            ..self
        }
    }

    /// Runs the case and compares what is on the node before and after.
    pub fn run(self) -> Result<()> {
        let before = Leftovers::count().context("count what is on the node")?;
        (self.run)()?;
        let mut last = before.clone();
        let settled = wait::until("the node as it was", SETTLE, || {
            last = Leftovers::count()?;
            Ok((last == before).then_some(()))
        });
        settled.with_context(|| format!("left on the node (before, after):\n{before}\n{last}"))
    }
}

fn with_cri(tier: Tier, name: &'static str, run: fn(&Cri) -> Result<()>) -> Case {
    Case {
        name,
        tier,
        run: Box::new(move || run(&Cri::connect()?)),
    }
}

/// A case for every change.
pub fn gate(name: &'static str, run: fn(&Cri) -> Result<()>) -> Case {
    with_cri(Tier::Gate, name, run)
}

/// A case for the long run.
pub fn long(name: &'static str, run: fn(&Cri) -> Result<()>) -> Case {
    with_cri(Tier::Long, name, run)
}

/// A case for every change that runc's pods go through first: what it asks for is so for them.
pub fn beside_runc(name: &'static str, run: fn(&Cri, Handler) -> Result<()>) -> Case {
    let both = move || {
        let cri = Cri::connect()?;
        for handler in [Handler::Runc, Handler::Podvisor] {
            run(&cri, handler).with_context(|| format!("{handler:?}"))?;
        }
        Ok(())
    };
    Case {
        name,
        tier: Tier::Gate,
        run: Box::new(both),
    }
}
