//! Log lines to the kernel's ring buffer, which the console shows: the one
//! place that the host keeps when a guest dies.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// Longest record /dev/kmsg takes, less the prefix the kernel adds.
const MAX_RECORD: usize = 900;

/// Installs the subscriber; without /dev/kmsg nothing is logged.
pub fn install() {
    let Ok(kmsg) = File::options().write(true).open("/dev/kmsg") else {
        return;
    };
    // Fails only when one is installed already, which is then as good.
    let _ = tracing::subscriber::set_global_default(KernelLog { kmsg });
}

/// Writes every event of level info and above as one record.
struct KernelLog {
    kmsg: File,
}

impl Subscriber for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        // Spans are not kept; any id does.
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        // Syslog priorities: error 3, warning 4, informational 6.
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            _ => 6,
        };
        let mut record = Record {
            text: format!("<{priority}>podvisor-agent:"),
        };
        event.record(&mut record);
        let mut end = record.text.len().min(MAX_RECORD);
        while !record.text.is_char_boundary(end) {
            end -= 1;
        }
        record.text.truncate(end);
        // The kernel keeps a record open for more until its line ends.
        record.text.push('\n');
        // A log line that cannot be written has nowhere to be reported.
        let _ = (&self.kmsg).write_all(record.text.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Record {
    text: String,
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = if field.name() == "message" {
            write!(self.text, " {value:?}")
        } else {
            write!(self.text, " {}={value:?}", field.name())
        };
    }
}

/// Says why PID 1 ends, past the subscriber.
pub fn last_words(message: &str) {
    let record = format!("<0>podvisor-agent: {message}\n");
    // The end follows in any case.
    let _ = std::fs::write("/dev/kmsg", record);
}
