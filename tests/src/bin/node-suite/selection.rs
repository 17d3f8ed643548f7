//! Which cases of the suite run: `--share N` or `--rest N` of the cases that the containerd versions
//! share, `--long`, or all but the long ones.

use anyhow::{Context as _, Result};

use crate::case::{Case, Tier};

/// The containerd versions, which share cases.
const VERSIONS: usize = 2;

/// A choice of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// For every change, nothing left to other versions.
    Gate,
    /// For every change, with the shared cases of the version of this number.
    Share(usize),
    /// The shared cases that `Share` leaves to other versions.
    Rest(usize),
    /// The long ones.
    Long,
}

impl Selection {
    /// Takes a selection out of a command line; yields the other words, too.
    ///
    /// # Errors
    /// A version that has no number.
    pub fn of_arguments(words: impl Iterator<Item = String>) -> Result<(Self, Vec<String>)> {
        let mut selection = Self::Gate;
        let mut others = Vec::new();
        let mut words = words;
        while let Some(word) = words.next() {
            let mut number = || -> Result<usize> {
                let number = words.next().with_context(|| format!("{word} of what?"))?;
                number
                    .parse()
                    .with_context(|| format!("{word} {number}: not a number"))
            };
            match word.as_str() {
                "--share" => selection = Self::Share(number()?),
                "--rest" => selection = Self::Rest(number()?),
                "--long" => selection = Self::Long,
                _ => others.push(word),
            }
        }
        Ok((selection, others))
    }

    /// Those of `cases` that run.
    pub fn choose(
        self,
        cases: impl Iterator<Item = (String, Case)>,
    ) -> impl Iterator<Item = (String, Case)> {
        let mut shared = 0;
        cases.filter(move |(_, case)| {
            shared += usize::from(case.tier == Tier::Shared);
            self.has(case.tier, version_of(shared))
        })
    }

    fn has(self, tier: Tier, version: usize) -> bool {
        match (self, tier) {
            (Self::Gate | Self::Share(_), Tier::Gate)
            | (Self::Gate, Tier::Shared)
            | (Self::Long, Tier::Long) => true,
            (Self::Share(own), Tier::Shared) => own == version,
            (Self::Rest(own), Tier::Shared) => own != version,
            _ => false,
        }
    }
}

/// Which version runs the shared case of this number: they take turns.
fn version_of(shared: usize) -> usize {
    shared % VERSIONS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &str) -> Vec<&'static str> {
        let words = words.split_whitespace().map(str::to_owned);
        let (selection, _) = Selection::of_arguments(words).unwrap();
        let all = crate::cases();
        let named = all.into_iter().map(|case| (case.name.to_owned(), case));
        selection.choose(named).map(|(_, case)| case.name).collect()
    }

    #[test]
    fn versions_share_without_a_gap_or_an_overlap() {
        for version in 0..VERSIONS {
            let (share, rest) = (format!("--share {version}"), format!("--rest {version}"));
            let mut both = [names(&share), names(&rest)].concat();
            both.sort_unstable();
            let mut all = names("");
            all.sort_unstable();
            assert_eq!(both, all);
        }
        let mut shares = [names("--share 0"), names("--share 1")].concat();
        shares.sort_unstable();
        shares.dedup();
        assert_eq!(shares.len(), names("").len());
    }

    #[test]
    fn every_case_is_of_the_gate_or_long() {
        assert_eq!(
            names("").len() + names("--long").len(),
            crate::cases().len()
        );
    }

    #[test]
    fn other_words_stay() {
        let words = ["suite", "--rest", "1", "--exact", "name"].map(str::to_owned);
        let (selection, others) = Selection::of_arguments(words.into_iter()).unwrap();
        assert_eq!(selection, Selection::Rest(1));
        assert_eq!(others, ["suite", "--exact", "name"]);
        let broken = ["--share", "x"].map(str::to_owned);
        assert!(Selection::of_arguments(broken.into_iter()).is_err());
    }
}
