//! Text for a POSIX shell.

/// A word that the shell takes as it is.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A command that writes `text` to its standard input, whatever is in it. `text` ends with a newline.
pub fn here_document(command: &str, text: &str) -> String {
    let mut end = "PODVISOR_END".to_owned();
    while text.lines().any(|line| line == end) {
        end.push('_');
    }
    format!("{command} <<'{end}'\n{text}{end}\n")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn output(script: &str) -> Vec<u8> {
        let run = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        run.stdout
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_shell_gives_back_what_was_quoted(word in "[^\0]{0,40}") {
            let printed = output(&format!("printf %s {}", quote(&word)));
            prop_assert_eq!(printed, word.into_bytes());
        }

        #[test]
        fn nothing_in_a_here_document_ends_it(lines in prop::collection::vec("PODVISOR_END_?|[^\0\n\r]{0,20}", 0..5)) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(output(&here_document("cat", &text)), text.into_bytes());
        }
    }
}
