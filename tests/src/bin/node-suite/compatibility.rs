//! docs/compatibility.md says only what a case of this suite shows.

use std::collections::BTreeSet;

const DOCUMENT: &str = include_str!("../../../../docs/compatibility.md");
const VERDICTS: [&str; 3] = ["works", "differs", "refused"];

/// A row of one of the document's tables.
struct Row<'a> {
    line: &'a str,
    verdict: &'a str,
    cases: Vec<&'a str>,
}

impl<'a> Row<'a> {
    /// Parses a table's line; `None` for any other line, a table's head and the line below it.
    fn parse(line: &'a str) -> Option<Self> {
        let cells: Vec<&str> = line
            .strip_prefix('|')?
            .strip_suffix('|')?
            .split(" | ")
            .map(str::trim)
            .collect();
        let &[field, verdict, shown_by] = cells.as_slice() else {
            return None;
        };
        let cases = shown_by.split('`').skip(1).step_by(2).collect();
        (field != "field").then_some(Self {
            line,
            verdict,
            cases,
        })
    }
}

#[test]
fn every_row_has_a_verdict_and_cases_that_exist() {
    let all: BTreeSet<&str> = crate::cases().iter().map(|case| case.name).collect();
    let rows: Vec<Row<'_>> = DOCUMENT.lines().filter_map(Row::parse).collect();
    assert!(rows.len() > 10, "the tables are not read");
    for row in rows {
        let known = VERDICTS
            .iter()
            .any(|verdict| row.verdict.starts_with(verdict));
        assert!(known, "no verdict: {}", row.line);
        assert!(!row.cases.is_empty(), "no case: {}", row.line);
        for case in &row.cases {
            assert!(all.contains(case), "no such case: {case}: {}", row.line);
        }
    }
}

#[test]
fn every_line_of_a_table_is_a_row() {
    let lines = DOCUMENT
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| field |"));
    for line in lines {
        assert!(Row::parse(line).is_some(), "not three cells: {line}");
    }
}
