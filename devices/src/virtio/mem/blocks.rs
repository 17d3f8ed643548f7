//! Which blocks of a region of memory the guest has plugged.

use thiserror::Error;

/// Why a request for blocks is not carried out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// The request names memory outside of the region, parts of blocks, or none.
    #[error("no blocks of the region")]
    Range,
    /// Some of the blocks are not in the state that the request takes for granted.
    #[error("blocks in the wrong state")]
    State,
}

/// State of a run of blocks (virtio 1.2, 5.15.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// All are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

/// Where the region is and what it is made of; all three in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRegion {
    /// Its first guest-physical address.
    pub base: u64,
    /// Its length, whole blocks.
    pub len: u64,
    /// The length of a block, a power of two.
    pub block_len: u64,
}

/// A run of blocks within the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    first: usize,
    count: usize,
}

const WORD_BITS: usize = u64::BITS as usize;

/// The region's blocks.
pub struct Blocks {
    region: MemRegion,
    plugged: Vec<u64>,
}

impl Blocks {
    /// A region without a plugged block. Its length, which the host chooses, sizes the map.
    pub fn new(region: MemRegion) -> Self {
        let mut blocks = Self {
            region,
            plugged: Vec::new(),
        };
        blocks.plugged.resize(blocks.count().div_ceil(WORD_BITS), 0);
        blocks
    }

    /// The region.
    pub fn region(&self) -> MemRegion {
        self.region
    }

    fn count(&self) -> usize {
        usize::try_from(self.region.len / self.region.block_len).unwrap_or(usize::MAX)
    }

    /// How many bytes are plugged.
    pub fn plugged_len(&self) -> u64 {
        let blocks: u32 = self.plugged.iter().map(|word| word.count_ones()).sum();
        u64::from(blocks) * self.region.block_len
    }

    /// The blocks that a request names.
    ///
    /// # Errors
    /// [`BlockError::Range`].
    pub fn run(&self, address: u64, count: u16) -> Result<Run, BlockError> {
        let offset = address
            .checked_sub(self.region.base)
            .ok_or(BlockError::Range)?;
        if !offset.is_multiple_of(self.region.block_len) || count == 0 {
            return Err(BlockError::Range);
        }
        let first = usize::try_from(offset / self.region.block_len);
        let first = first.map_err(|_| BlockError::Range)?;
        let count = usize::from(count);
        match first.checked_add(count) {
            Some(end) if end <= self.count() => Ok(Run { first, count }),
            _ => Err(BlockError::Range),
        }
    }

    /// How many bytes a run has.
    pub fn len(&self, run: Run) -> u64 {
        run.count as u64 * self.region.block_len
    }

    /// Where a run begins in guest memory.
    pub fn address(&self, run: Run) -> u64 {
        self.region.base + run.first as u64 * self.region.block_len
    }

    /// The state of a run.
    pub fn state(&self, run: Run) -> RunState {
        let blocks = run.first..run.first + run.count;
        match blocks.filter(|&block| self.is_plugged(block)).count() {
            0 => RunState::Unplugged,
            all if all == run.count => RunState::Plugged,
            _ => RunState::Mixed,
        }
    }

    /// Plugs a run.
    ///
    /// # Errors
    /// [`BlockError::State`] unless all of it is unplugged; nothing changes then.
    pub fn plug(&mut self, run: Run) -> Result<(), BlockError> {
        self.change(run, RunState::Unplugged)
    }

    /// Unplugs a run.
    ///
    /// # Errors
    /// [`BlockError::State`] unless all of it is plugged; nothing changes then.
    pub fn unplug(&mut self, run: Run) -> Result<(), BlockError> {
        self.change(run, RunState::Plugged)
    }

    fn change(&mut self, run: Run, from: RunState) -> Result<(), BlockError> {
        if self.state(run) != from {
            return Err(BlockError::State);
        }
        for block in run.first..run.first + run.count {
            if let Some(word) = self.plugged.get_mut(block / WORD_BITS) {
                *word ^= 1 << (block % WORD_BITS);
            }
        }
        Ok(())
    }

    /// Unplugs all blocks.
    pub fn clear(&mut self) {
        self.plugged.fill(0);
    }

    fn is_plugged(&self, block: usize) -> bool {
        let word = self.plugged.get(block / WORD_BITS).copied();
        word.unwrap_or_default() >> (block % WORD_BITS) & 1 == 1
    }

    /// The map, a bit for each block.
    pub fn words(&self) -> &[u64] {
        &self.plugged
    }

    /// Takes back what [`Self::words`] gave. `false` when it is of another region.
    #[must_use]
    pub fn set_words(&mut self, words: &[u64]) -> bool {
        let used = self.count() % WORD_BITS;
        let beyond = words
            .last()
            .filter(|_| used > 0)
            .is_some_and(|last| last >> used != 0);
        if words.len() != self.plugged.len() || beyond {
            return false;
        }
        self.plugged.copy_from_slice(words);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 0x1000;
    const BASE: u64 = 0x10_0000;

    fn blocks(count: u64) -> Blocks {
        Blocks::new(MemRegion {
            base: BASE,
            len: count * BLOCK,
            block_len: BLOCK,
        })
    }

    #[test]
    fn runs_lie_in_the_region_and_on_its_blocks() {
        let blocks = blocks(100);
        assert!(blocks.run(BASE, 100).is_ok());
        assert!(blocks.run(BASE + 99 * BLOCK, 1).is_ok());
        for (address, count) in [
            (BASE, 101),
            (BASE + 99 * BLOCK, 2),
            (BASE + 100 * BLOCK, 1),
            (BASE - BLOCK, 1),
            (BASE + 1, 1),
            (BASE, 0),
            (0, 1),
            (u64::MAX, u16::MAX),
        ] {
            let refused = blocks.run(address, count);
            assert_eq!(refused, Err(BlockError::Range), "{address:#x} {count}");
        }
    }

    #[test]
    fn a_map_of_another_region_is_refused() {
        let mut blocks = blocks(70);
        assert!(blocks.set_words(&[u64::MAX, 0x3f]));
        assert_eq!(blocks.plugged_len(), 70 * BLOCK);
        assert!(!blocks.set_words(&[0, 0x40]));
        assert!(!blocks.set_words(&[0]));
        assert_eq!(blocks.words(), [u64::MAX, 0x3f]);
    }

    proptest! {
        #[test]
        fn blocks_change_only_as_a_whole(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..130, 1_u16..20), 0..60),
        ) {
            let mut blocks = blocks(130);
            let mut expected = BTreeSet::new();
            for (plug, first, count) in steps {
                let Ok(run) = blocks.run(BASE + first * BLOCK, count) else { continue };
                let wanted: BTreeSet<_> = (first..first + u64::from(count)).collect();
                let found = wanted.intersection(&expected).count();
                let state = match found {
                    0 => RunState::Unplugged,
                    all if all == wanted.len() => RunState::Plugged,
                    _ => RunState::Mixed,
                };
                prop_assert_eq!(blocks.state(run), state);
                if plug {
                    let done = blocks.plug(run);
                    prop_assert_eq!(done.is_ok(), state == RunState::Unplugged);
                    if done.is_ok() { expected.extend(wanted); }
                } else {
                    let done = blocks.unplug(run);
                    prop_assert_eq!(done.is_ok(), state == RunState::Plugged);
                    if done.is_ok() { expected.retain(|block| !wanted.contains(block)); }
                }
                prop_assert_eq!(blocks.plugged_len(), expected.len() as u64 * BLOCK);
            }
        }
    }
}
