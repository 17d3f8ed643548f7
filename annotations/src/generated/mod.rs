//! Documentation, schema and admission policy are made from the definition of the keys, and the files
//! in the repository are what is made.

mod docs;
mod policy;
mod schema;

use std::path::Path;

/// Set to write the files instead of comparing them.
const REGENERATE: &str = "PODVISOR_REGENERATE";

/// Compares a file of the repository with what it should be.
fn check(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = there.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        there == text,
        "{path} is not what the definition says (line {}): make it again with \
         {REGENERATE}=1 cargo test -p podvisor-annotations generated",
        differs.map_or("beyond the last".to_owned(), |line| (line + 1).to_string()),
    );
}
