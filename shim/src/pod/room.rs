//! How far a pod's machine can grow, and how large its containers' limits want it.

use podvisor_annotations::value::cpu::{CpuTopology, Vcpus as CpuCount};
use podvisor_annotations::{Annotations, Key};
use podvisor_vmm::{MemorySize, Vcpus};
use thiserror::Error;

use super::hardware::memory_backing;
use super::resources::Share;
use super::sizing::{MIN_LIMIT, Size, SizeError, guest_memory, mib};

/// Memory is plugged in multiples of this, in bytes: what guests of all ages take as one piece.
const STEP: u64 = 4 << 20;

/// The sizes that a machine can have. Without annotations that is the one it begins with: room costs every
/// boot some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What it begins with, and never goes below.
    pub booted: Size,
    /// What it is to have now.
    pub now: Size,
    /// The most it can have.
    pub most: Size,
    /// Whether all of its memory is its container's: a guest of ours takes some for itself.
    pub is_machine: bool,
}

/// What all containers of a pod may use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Memory in bytes.
    pub memory: u64,
    /// Thousandths of a CPU.
    pub millicpus: u64,
}

/// Limits beyond what a machine can have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RoomError {
    /// More memory.
    #[error(
        "resources.limits.memory: the pod's limits of {} in all need a VM of {}, and {} allows {}",
        mib(*.demand), mib(*.needed), Key::MaxMemory, mib(*.most)
    )]
    Memory {
        /// The limits' sum in bytes.
        demand: u64,
        /// What the machine would have to have.
        needed: u64,
        /// What it can have.
        most: u64,
    },
    /// More processors.
    #[error(
        "resources.limits.cpu: the pod's limits of {millicpus}m in all need a VM of {needed} CPUs, and {} allows {most}",
        Key::MaxCpus
    )]
    Cpu {
        /// The limits' sum in thousandths of a CPU.
        millicpus: u64,
        /// What the machine would have to have.
        needed: u64,
        /// What it can have.
        most: u8,
    },
    /// No machine has as much, or the pod's cgroup does not allow it.
    #[error("the pod's VM cannot grow")]
    Size(#[from] SizeError),
}

impl Demand {
    /// What containers with these shares may use.
    pub fn of<'a>(shares: impl IntoIterator<Item = &'a Share>) -> Self {
        let mut sum = Self::default();
        for share in shares {
            let memory = share.memory.unwrap_or_default();
            sum.memory = sum.memory.saturating_add(memory);
            let millicpus = share.limit_millicpus.unwrap_or_default();
            sum.millicpus = sum.millicpus.saturating_add(millicpus);
        }
        sum
    }
}

impl Room {
    /// The room of a machine that begins with `size`.
    ///
    /// # Errors
    /// [`SizeError`] for a most that is none.
    pub fn new(size: Size, annotations: &Annotations, is_machine: bool) -> Result<Self, SizeError> {
        let most = Size {
            vcpus: most_vcpus(size, annotations)?,
            memory: most_memory(size, annotations)?,
        };
        Ok(Self {
            booted: size,
            now: size,
            most,
            is_machine,
        })
    }

    /// Whether the machine can be another size than it began with.
    pub fn is_any(&self) -> bool {
        self.most != self.booted
    }

    /// The size for containers that use as much as `demand`. More CPU time than there can be is refused
    /// when `is_raised`: a limit that was there before is no promise.
    ///
    /// # Errors
    /// [`RoomError`] when the machine cannot have it.
    pub fn size_for(&self, demand: Demand, is_raised: bool) -> Result<Size, RoomError> {
        let vcpus = self.vcpus_for(demand.millicpus, is_raised)?;
        let memory = self.memory_for(demand.memory, vcpus)?;
        Ok(Size { vcpus, memory })
    }

    fn vcpus_for(&self, millicpus: u64, is_raised: bool) -> Result<Vcpus, RoomError> {
        let (booted, most) = (self.booted.vcpus, self.most.vcpus);
        if most == booted {
            return Ok(booted);
        }
        let needed = millicpus.div_ceil(1000);
        if needed > u64::from(most.get()) && is_raised {
            let most = most.get();
            return Err(RoomError::Cpu {
                millicpus,
                needed,
                most,
            });
        }
        let needed = u32::try_from(needed).unwrap_or(u32::MAX);
        let needed = Vcpus::try_from(needed.max(1)).unwrap_or(most);
        Ok(needed.clamp(booted, most))
    }

    fn memory_for(&self, demand: u64, vcpus: Vcpus) -> Result<MemorySize, RoomError> {
        let (booted, most) = (self.booted.memory.bytes(), self.most.memory.bytes());
        if most == booted || demand == 0 {
            return Ok(self.booted.memory);
        }
        let needed = if self.is_machine {
            demand
        } else {
            guest_memory(demand.max(MIN_LIMIT), vcpus)?.bytes()
        };
        if needed > most {
            return Err(RoomError::Memory {
                demand,
                needed,
                most,
            });
        }
        let plugged = needed.saturating_sub(booted).next_multiple_of(STEP);
        let bytes = (booted + plugged).min(most);
        let size = MemorySize::from_bytes(bytes);
        Ok(size.map_err(|_| SizeError::TooLarge { limit: bytes })?)
    }
}

/// The annotation's number, or as many as the topology has.
fn most_vcpus(size: Size, annotations: &Annotations) -> Result<Vcpus, SizeError> {
    let booted = size.vcpus;
    let vcpus = |cpus: CpuCount| Vcpus::try_from(u32::from(cpus.get())).unwrap_or(booted);
    match annotations.max_cpus {
        Some(cpus) if vcpus(cpus) < booted => Err(SizeError::MostBelowBooted {
            key: Key::MaxCpus,
            most: cpus.to_string(),
            booted: format!("{} vCPUs", booted.get()),
        }),
        Some(cpus) => Ok(vcpus(cpus)),
        None => {
            let topology = annotations.cpu_topology.map(CpuTopology::vcpus);
            Ok(topology.map_or(booted, |cpus| vcpus(cpus).max(booted)))
        }
    }
}

fn most_memory(size: Size, annotations: &Annotations) -> Result<MemorySize, SizeError> {
    let Some(given) = annotations.max_memory else {
        return Ok(size.memory);
    };
    let limit = given.bytes();
    let most = MemorySize::from_bytes(limit).map_err(|_| SizeError::TooLarge { limit })?;
    if most < size.memory {
        return Err(SizeError::MostBelowBooted {
            key: Key::MaxMemory,
            most: given.to_string(),
            booted: mib(size.memory.bytes()),
        });
    }
    if most > size.memory && memory_backing(annotations, false).is_pool() {
        return Err(SizeError::Pool);
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use podvisor_annotations::value::memory::Hugepages;
    use proptest::prelude::*;

    use super::*;

    fn room(max_cpus: &str, max_memory: &str) -> Result<Room, SizeError> {
        let annotations = Annotations {
            max_cpus: Some(max_cpus.parse().unwrap()),
            max_memory: Some(max_memory.parse().unwrap()),
            ..Annotations::default()
        };
        Room::new(Size::of(1, 182), &annotations, false)
    }

    fn demand(memory_mib: u64, millicpus: u64) -> Demand {
        Demand {
            memory: memory_mib << 20,
            millicpus,
        }
    }

    #[test]
    fn a_machine_without_annotations_stays_as_it_is() {
        let room = Room::new(Size::of(1, 182), &Annotations::default(), false).unwrap();
        assert!(!room.is_any());
        assert_eq!(
            room.size_for(demand(4096, 9000), true),
            Ok(Size::of(1, 182))
        );
    }

    #[test]
    fn a_machine_grows_with_the_limits_and_shrinks_to_what_it_began_with() {
        let room = room("4", "1Gi").unwrap();
        assert_eq!(room.size_for(demand(128, 1000), true), Ok(Size::of(1, 182)));
        // 256 MiB, 46 + 2 for the guest itself, and a part in 31 of that.
        assert_eq!(room.size_for(demand(256, 1001), true), Ok(Size::of(2, 314)));
        assert_eq!(room.size_for(demand(0, 0), true), Ok(Size::of(1, 182)));
    }

    #[test]
    fn what_is_beyond_is_refused_with_the_numbers_and_the_key() {
        let room = room("4", "512Mi").unwrap();
        let error = room
            .size_for(demand(1024, 0), true)
            .unwrap_err()
            .to_string();
        for part in [
            "limits.memory",
            "1024 MiB",
            "512 MiB",
            "podvisor.io/max-memory",
        ] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        let error = room
            .size_for(demand(0, 4500), true)
            .unwrap_err()
            .to_string();
        for part in ["limits.cpu", "4500m", "5 CPUs", "podvisor.io/max-cpus", "4"] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        assert_eq!(room.size_for(demand(0, 4500), false), Ok(Size::of(4, 182)));
    }

    #[test]
    fn a_most_below_what_there_is_or_on_a_pool_is_refused() {
        let error = room("1", "64Mi").unwrap_err().to_string();
        assert!(
            error.contains("max-memory") && error.contains("182 MiB"),
            "{error}"
        );
        let annotations = Annotations {
            max_memory: Some("1Gi".parse().unwrap()),
            hugepages: Some(Hugepages::Mi2),
            ..Annotations::default()
        };
        let error = Room::new(Size::of(1, 182), &annotations, true);
        assert_eq!(error, Err(SizeError::Pool));
        let annotations = Annotations {
            max_cpus: Some("1".parse().unwrap()),
            ..Annotations::default()
        };
        let error = Room::new(Size::of(2, 182), &annotations, true).unwrap_err();
        assert!(error.to_string().contains("2 vCPUs"), "{error}");
    }

    #[test]
    fn all_of_a_machines_memory_is_its_own() {
        let room = Room {
            is_machine: true,
            ..room("1", "1Gi").unwrap()
        };
        assert_eq!(room.size_for(demand(512, 0), true), Ok(Size::of(1, 514)));
    }

    proptest! {
        #[test]
        fn every_size_has_room_for_the_limits(memory_mib in 8_u64..2000, millicpus in 0_u64..9000) {
            let room = room("4", "1Gi").unwrap();
            if let Ok(size) = room.size_for(demand(memory_mib, millicpus), true) {
                prop_assert!(size.memory.bytes() > memory_mib << 20);
                prop_assert!(u64::from(size.vcpus.get()) * 1000 >= millicpus);
                prop_assert!(size.memory <= room.most.memory && size.memory >= room.booted.memory);
            }
        }
    }
}
