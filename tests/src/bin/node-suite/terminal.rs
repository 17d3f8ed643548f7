//! A person at a terminal in which a command runs, such as `podvisor console`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use podvisor_tests::wait;

/// How long a command takes at most to end once it is to.
const END: Duration = Duration::from_secs(60);
/// The terminal's size, which no other terminal has by chance.
const SIZE: Winsize = Winsize {
    ws_row: 37,
    ws_col: 101,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// What is shown somewhere, as it comes.
pub struct Screen {
    file: File,
    /// What was shown and not waited for yet.
    unread: Vec<u8>,
}

impl Screen {
    /// What can be read from `file`.
    pub fn new(file: File) -> Result<Self> {
        fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            file,
            unread: Vec::new(),
        })
    }

    /// Waits until `text` is shown, after what was waited for before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let Self { file, unread } = self;
        let found = wait::until(text, limit, || {
            let mut buffer = [0; 4096];
            // Nothing there, or nobody at the other end: what was shown decides.
            if let Ok(len) = file.read(&mut buffer) {
                unread.extend_from_slice(buffer.get(..len).unwrap_or_default());
            }
            let mut windows = unread.windows(text.len());
            Ok(windows.position(|window| window == text.as_bytes()))
        });
        let found = found.with_context(|| format!("shown: {:?}", String::from_utf8_lossy(unread)));
        unread.drain(..found? + text.len());
        Ok(())
    }
}

/// A terminal of 101 columns and 37 rows with a command in it, which is ended when this is dropped.
pub struct Terminal {
    screen: Screen,
    command: Child,
}

impl Terminal {
    /// Starts a command in a terminal of its own.
    pub fn run(command: &mut Command) -> Result<Self> {
        let terminal = openpty(Some(&SIZE), None)?;
        let stdio = || terminal.slave.try_clone().map(Stdio::from);
        let command = command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
        Ok(Self {
            screen: Screen::new(File::from(terminal.master))?,
            command: command.spawn().context("a command in a terminal")?,
        })
    }

    /// Types text.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        Ok(self.screen.file.write_all(text.as_bytes())?)
    }

    /// Waits until `text` is shown, after what was waited for before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.screen.wait_for(text, limit)
    }

    /// Waits for the command's end, and yields its exit code.
    pub fn end(&mut self) -> Result<Option<i32>> {
        end(&mut self.command)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

/// Waits for a command's end, and yields its exit code.
pub fn end(command: &mut Child) -> Result<Option<i32>> {
    let status = wait::until("the command's end", END, || Ok(command.try_wait()?));
    if status.is_err() {
        command.kill()?;
    }
    Ok(status?.code())
}
