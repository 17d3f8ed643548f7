//! Ranges that one operation has for itself.

use std::ops::Range;

/// Clusters that are being filled: whoever else wants to change one of them waits.
#[derive(Debug, Default)]
pub struct BusyRanges {
    ranges: Vec<(usize, Range<u64>)>,
}

impl BusyRanges {
    /// Whether one of the ranges and `range` have bytes in common.
    pub fn overlap(&self, range: &Range<u64>) -> bool {
        let overlaps = |busy: &Range<u64>| busy.start < range.end && range.start < busy.end;
        self.ranges.iter().any(|(_, busy)| overlaps(busy))
    }

    /// Gives `range` to `owner`.
    pub fn add(&mut self, owner: usize, range: Range<u64>) {
        self.ranges.push((owner, range));
    }

    /// Takes all ranges from `owner`.
    pub fn release(&mut self, owner: usize) {
        self.ranges.retain(|(other, _)| *other != owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        let mut busy = BusyRanges::default();
        busy.add(1, 10..20);
        busy.add(1, 40..50);
        busy.add(2, 60..70);
        assert!(!busy.overlap(&(20..40)) && busy.overlap(&(19..20)) && busy.overlap(&(0..99)));
        busy.release(1);
        assert!(!busy.overlap(&(0..60)) && busy.overlap(&(69..70)));
    }
}
