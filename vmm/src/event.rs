//! What a machine tells its owner.

use std::fmt;

/// Takes events. Called from the machine's threads; it must not block them.
pub type EventSink = Box<dyn Fn(VmEvent) + Send + Sync>;

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// The machine was reset and is about to enter its kernel again, with devices as at power-on
    /// and nothing in memory of before. Sent while no processor runs, never after the end.
    Restarted {
        /// What reset it.
        cause: RestartCause,
        /// How often it was reset so far. An owner that finds the rate absurd stops it.
        count: u64,
    },
    /// The guest does not run any more. Sent exactly once, after the last processor stopped.
    Ended(EndReason),
}

/// Why a machine is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartCause {
    /// The guest asked for it, through ACPI or the keyboard controller.
    Guest,
    /// The guest switched itself off.
    PowerOff,
    /// A processor faulted while it handled a double fault.
    TripleFault,
    /// The guest did not come back to its watchdog in time.
    Watchdog,
    /// The owner wanted it.
    Owner,
}

impl From<RestartCause> for EndReason {
    /// Why a machine ends that is not started again.
    fn from(cause: RestartCause) -> Self {
        match cause {
            RestartCause::Guest => Self::Reset,
            RestartCause::PowerOff => Self::Shutdown,
            RestartCause::TripleFault => Self::TripleFault,
            RestartCause::Watchdog => Self::Watchdog,
            RestartCause::Owner => Self::Killed,
        }
    }
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The guest switched itself off (ACPI S5).
    Shutdown,
    /// The guest asked for a reset, through ACPI or the keyboard controller.
    Reset,
    /// The guest's kernel said on its console that it panicked, and then reset.
    GuestPanic {
        /// What it said.
        message: String,
    },
    /// A processor faulted while it handled a double fault; a kernel without panic output
    /// resets like this, too.
    TripleFault,
    /// The guest did not come back to its watchdog in time.
    Watchdog,
    /// KVM cannot go on with a processor.
    KvmError {
        /// What KVM said.
        cause: String,
    },
    /// A device without which the guest makes no sense stopped working.
    DeviceFailed {
        /// Name of its slot.
        device: String,
        /// What happened.
        cause: String,
    },
    /// The guest's reset could not be carried out.
    RestartFailed {
        /// What happened.
        cause: String,
    },
    /// A thread of the machine panicked: a defect of this program.
    ThreadPanicked {
        /// Its name.
        thread: String,
    },
    /// The owner stopped it.
    Killed,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::GuestPanic { message } => write!(f, "the guest's kernel panicked: {message}"),
            Self::TripleFault => f.write_str("the guest reset itself by a triple fault"),
            Self::Watchdog => f.write_str("the guest's watchdog expired"),
            Self::KvmError { cause } => write!(f, "KVM cannot run the guest: {cause}"),
            Self::DeviceFailed { device, cause } => write!(f, "device {device} failed: {cause}"),
            Self::RestartFailed { cause } => write!(f, "the guest cannot be restarted: {cause}"),
            Self::ThreadPanicked { thread } => write!(f, "thread {thread} of the VMM panicked"),
            Self::Killed => f.write_str("the VM was killed"),
        }
    }
}

/// What Linux prints first when it panics.
const PANIC_MARK: &str = "Kernel panic - not syncing";
/// What Linux prints last when it restarts because somebody wants it: a panic message before it is
/// somebody else's, such as an old log's.
const RESTART_MARK: &str = "reboot: Restarting system";
/// Longest message taken from a console.
const MAX_PANIC_LEN: usize = 200;

impl EndReason {
    /// Tells a panic from a wanted reset by the console's last output, which must not be of an
    /// earlier boot: Linux resets in the same way after both.
    pub(crate) fn classified(self, console_tail: &[u8]) -> Self {
        match self {
            Self::Reset | Self::TripleFault => match panic_message(console_tail) {
                Some(message) => Self::GuestPanic { message },
                None => self,
            },
            other => other,
        }
    }
}

fn panic_message(console_tail: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console_tail);
    let (_, message) = text.rsplit_once(PANIC_MARK)?;
    if message.contains(RESTART_MARK) {
        return None;
    }
    let line = message.lines().next().unwrap_or_default();
    let printable = line
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_PANIC_LEN)
        .collect::<String>();
    Some(
        printable
            .trim_start_matches([':', ' '])
            .trim_end()
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_after_a_panic_message_is_a_panic() {
        let console =
            b"[    0.5] Kernel panic - not syncing: VFS: Unable to mount\r\n[    0.6] CPU: 0\r\n";
        let expected = EndReason::GuestPanic {
            message: "VFS: Unable to mount".to_owned(),
        };
        assert_eq!(EndReason::Reset.classified(console), expected);
        assert_eq!(EndReason::TripleFault.classified(console), expected);
    }

    #[test]
    fn other_ends_keep_their_reason() {
        let console = b"Kernel panic - not syncing: x";
        assert_eq!(EndReason::Shutdown.classified(console), EndReason::Shutdown);
        assert_eq!(EndReason::Killed.classified(console), EndReason::Killed);
        for wanted in [
            b"reboot: Restarting system".as_slice(),
            b"# dmesg\r\nKernel panic - not syncing: old\r\n[    9.1] reboot: Restarting system\r\n",
        ] {
            assert_eq!(EndReason::Reset.classified(wanted), EndReason::Reset);
        }
    }

    #[test]
    fn a_guests_message_is_printable_and_short() {
        let console = [
            b"Kernel panic - not syncing: \x1b[31m".as_slice(),
            &[b'x'; 500],
            b"\xff",
        ]
        .concat();
        let EndReason::GuestPanic { message } = EndReason::Reset.classified(&console) else {
            panic!("not a panic");
        };
        assert!(message.chars().count() <= MAX_PANIC_LEN);
        assert!(message.chars().all(|c| !c.is_control()));
    }
}
