//! Changed metadata on their way to the file: what is referred to before what refers to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::refcounts::RefcountWrites;
use super::tables::Write;

/// The writes of a flush. The file is synchronised after each step.
pub struct Flush {
    steps: Vec<Vec<Write>>,
    /// The step that was begun last.
    at: usize,
    /// Whether that step has to be done again, because it failed.
    again: bool,
    /// Clusters that are free afterwards.
    pub freed: Vec<u64>,
}

impl Flush {
    /// The flush of new reference counts and of the entries of L1 and L2 tables.
    pub fn new(refcounts: RefcountWrites, mapping: Vec<Write>) -> Self {
        let RefcountWrites {
            blocks,
            table,
            header,
            freed,
        } = refcounts;
        // The first step has no writes when only data have changed.
        let mut steps = vec![blocks];
        let header = Vec::from_iter(header);
        steps.extend(
            [table, header, mapping]
                .into_iter()
                .filter(|step| !step.is_empty()),
        );
        Self {
            steps,
            at: 0,
            again: false,
            freed,
        }
    }

    /// Writes the first step, or the one that failed.
    ///
    /// # Errors
    /// Those of writing; the step has to be done again.
    pub fn begin(&mut self, file: &File) -> io::Result<()> {
        self.again = true;
        for (offset, bytes) in self.steps.get(self.at).into_iter().flatten() {
            file.write_all_at(bytes, *offset)?;
        }
        self.again = false;
        Ok(())
    }

    /// The file was synchronised: writes the next step. `false` when there is none.
    ///
    /// # Errors
    /// Those of writing; the step has to be done again.
    pub fn go_on(&mut self, file: &File) -> io::Result<bool> {
        if !self.again {
            self.at += 1;
        }
        if self.at >= self.steps.len() {
            return Ok(false);
        }
        self.begin(file)?;
        Ok(true)
    }

    /// The file could not be synchronised: the step has to be done again.
    pub fn fail(&mut self) {
        self.again = true;
    }
}
