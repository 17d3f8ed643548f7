//! Lists of CPUs as the kernel writes them: `0-2,5` (cpuset(7), "List format").

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The kernel's own bound of CPU numbers (`CONFIG_NR_CPUS` with `MAXSMP`).
const CPUS_MAX: u32 = 8192;

/// A set of CPUs, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

/// Not a list of CPUs.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no list of CPUs such as 0-2,5")]
pub struct CpuSetError(String);

impl CpuSet {
    /// Whether every one of its CPUs is among the first `count`.
    pub fn is_within(&self, count: u32) -> bool {
        self.0.last().is_none_or(|last| *last < count)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Their numbers, the lowest first.
    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        self.0.iter().filter_map(|cpu| usize::try_from(*cpu).ok())
    }

    /// Whether this CPU is one of them.
    pub fn has(&self, cpu: usize) -> bool {
        u32::try_from(cpu).is_ok_and(|cpu| self.0.contains(&cpu))
    }

    /// All CPUs of several sets.
    pub fn union<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        Self(sets.into_iter().flat_map(|set| &set.0).copied().collect())
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let invalid = || CpuSetError(text.to_owned());
        let number = |digits: &str| {
            let number: u32 = digits.trim().parse().map_err(|_| invalid())?;
            (number < CPUS_MAX).then_some(number).ok_or_else(invalid)
        };
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',') {
            match part.split_once('-') {
                Some((first, last)) => cpus.extend(number(first)?..=number(last)?),
                None => drop(cpus.insert(number(part)?)),
            }
        }
        if cpus.is_empty() {
            return Err(invalid());
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_and_numbers_are_read_and_written_shortest() {
        for (text, shortest) in [("0", "0"), ("0-2,5", "0-2,5"), ("5,1,0,2,5", "0-2,5")] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), shortest);
        }
        for wrong in ["", ",", "a", "1-", "3-1", "-1", "0,,1", "0-4294967295"] {
            assert!(wrong.parse::<CpuSet>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_set_lies_within_as_many_cpus_as_its_last_one_needs() {
        let set: CpuSet = "1,3".parse().unwrap();
        assert!(set.is_within(4));
        assert!(!set.is_within(3));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(cpus in prop::collection::btree_set(0..300_u32, 1..40)) {
            let set = CpuSet(cpus);
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }
    }
}
