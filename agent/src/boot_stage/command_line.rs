//! The command line of a machine's kernel: its own, and what this host needs of it.

/// Beginnings of consoles that the host hears: the serial port, and virtio's.
const HEARD: &[&str] = &["console=ttyS", "console=hvc"];
/// The machine's console is its serial port.
const CONSOLE: &str = "console=ttyS0";
/// A panic resets the machine at once, so that the host sees it.
const PANIC: &str = "panic=-1";

/// The machine's arguments with what they lack, and `more`. A console that they have already is not added
/// again.
#[must_use]
pub fn complete(own: &str, more: &[String]) -> String {
    let has = |prefix: &str| words(own).any(|word| word.starts_with(prefix));
    let is_there = |word: &str| word.starts_with("console=") && words(own).any(|one| one == word);
    let is_heard = |prefix: &&str| has(prefix) || more.iter().any(|word| word.starts_with(prefix));
    let mut line = own.trim().to_owned();
    let mut add = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if !HEARD.iter().any(is_heard) {
        add(CONSOLE);
    }
    if !has("panic=") {
        add(PANIC);
    }
    let more = more.iter().filter(|word| !is_there(word));
    more.for_each(|word| add(word));
    line
}

/// The words of a command line; double quotes hold white space together (lib/cmdline.c).
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut in_quotes = false;
    line.split(move |c: char| {
        in_quotes ^= c == '"';
        c.is_whitespace() && !in_quotes
    })
    .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_and_a_reset_are_added_where_they_lack() {
        let line = complete("root=UUID=1 ro console=tty0 quiet", &[]);
        assert_eq!(
            line,
            "root=UUID=1 ro console=tty0 quiet console=ttyS0 panic=-1"
        );
        let own = "console=ttyS0,115200n8 panic=30";
        assert_eq!(
            complete(own, &["mem=1G".to_owned()]),
            format!("{own} mem=1G")
        );
        assert_eq!(complete("", &[]), "console=ttyS0 panic=-1");
    }

    #[test]
    fn a_console_that_is_asked_for_is_the_last_one_and_there_once() {
        let more = ["console=hvc0".to_owned()];
        for (own, all) in [
            ("console=ttyS0", "console=ttyS0 panic=-1 console=hvc0"),
            (
                "console=tty0 quiet",
                "console=tty0 quiet panic=-1 console=hvc0",
            ),
            ("console=hvc0 panic=1", "console=hvc0 panic=1"),
            ("console=hvc1", "console=hvc1 panic=-1 console=hvc0"),
        ] {
            assert_eq!(complete(own, &more), all);
        }
    }

    #[test]
    fn what_is_quoted_is_one_word() {
        let own = "dyndbg=\"file x console=ttyS0\"";
        assert!(complete(own, &[]).ends_with("\" console=ttyS0 panic=-1"));
    }
}
