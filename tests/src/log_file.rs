//! Container logs in CRI's format: `TIMESTAMP STREAM P|F TEXT`, one entry a line.

use anyhow::{Context as _, Result};

/// What a container wrote, its two streams apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ContainerLog {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl ContainerLog {
    /// Parses a log file's content.
    ///
    /// # Errors
    /// When a line does not have CRI's four fields or names an unknown stream.
    pub fn parse(content: &str) -> Result<Self> {
        let mut log = Self::default();
        for line in content.lines() {
            let mut fields = line.splitn(4, ' ');
            let (_time, stream, tag) = (fields.next(), fields.next(), fields.next());
            let text = fields
                .next()
                .with_context(|| format!("not a CRI log line: {line:?}"))?;
            let stream = match stream {
                Some("stdout") => &mut log.stdout,
                Some("stderr") => &mut log.stderr,
                _ => anyhow::bail!("unknown stream in log line {line:?}"),
            };
            stream.push_str(text);
            if tag != Some("P") {
                stream.push('\n');
            }
        }
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_kept_apart_and_partial_lines_joined() {
        let log = ContainerLog::parse(
            "2026-01-01T00:00:00Z stdout P ab\n\
             2026-01-01T00:00:00Z stderr F oops\n\
             2026-01-01T00:00:00Z stdout F c d\n",
        )
        .unwrap();
        assert_eq!(log.stdout, "abc d\n");
        assert_eq!(log.stderr, "oops\n");
    }

    #[test]
    fn a_line_without_stream_is_an_error() {
        assert!(ContainerLog::parse("2026-01-01T00:00:00Z what F x\n").is_err());
        assert!(ContainerLog::parse("rubbish\n").is_err());
    }
}
