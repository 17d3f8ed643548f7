//! The console of a machine pod, as someone who is attached to it sees and uses it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::container::Container;
use crate::streaming::channel::{STDIN, STDOUT};
use crate::streaming::{Session, Wanted};
use crate::wait;

/// A console always says something within this, once a machine runs.
pub const ANSWER: Duration = Duration::from_secs(60);

/// How often someone who waits for a prompt asks for one.
pub const PROMPT: Duration = Duration::from_secs(10);

/// What a login prompt ends with, behind the machine's name.
pub const LOGIN: &str = " login: ";

/// Someone at a machine's console.
pub struct Console {
    session: Session,
    /// What was shown and not looked at yet, without carriage returns.
    unread: String,
    commands: u32,
}

impl Console {
    /// Attaches to the console of a running machine.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn attach(machine: &Container<'_, '_>) -> Result<Self> {
        let wanted = Wanted {
            stdin: true,
            terminal: true,
        };
        Ok(Self {
            session: machine.attach(wanted)?,
            unread: String::new(),
            commands: 0,
        })
    }

    /// Types text.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.session.send(STDIN, text.as_bytes())
    }

    /// Sets the size of the window.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.session.resize(columns, rows)
    }

    /// Waits until `text` is shown, and yields what was shown before it since the last time.
    ///
    /// # Errors
    /// When the stream ends before, or the text is not shown within `limit`.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.expect_any(&[text], limit).map(|(before, _)| before)
    }

    /// Waits until one of `texts` is shown, and yields what was shown before it, and which it is.
    fn expect_any<'t>(&mut self, texts: &[&'t str], limit: Duration) -> Result<(String, &'t str)> {
        let shown = self.look_for(texts, limit);
        shown
            .and_then(|shown| shown.with_context(|| format!("not within {limit:?}")))
            .with_context(|| {
                let texts = texts.join(" or ");
                format!("{texts:?} on the console that shows {:?}", self.unread)
            })
    }

    fn look_for<'t>(
        &mut self,
        texts: &[&'t str],
        limit: Duration,
    ) -> Result<Option<(String, &'t str)>> {
        let unread = &mut self.unread;
        self.session.receive_until(limit, |received| {
            let new = std::mem::take(received.channel(STDOUT));
            unread.push_str(&String::from_utf8_lossy(&new).replace('\r', ""));
            let found = texts
                .iter()
                .filter_map(|&text| Some((unread.find(text)?, text)));
            let (at, text) = found.min()?;
            let before = unread[..at].to_owned();
            unread.drain(..at + text.len());
            Some((before, text))
        })
    }

    /// Waits for a login prompt.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub fn expect_login(&mut self, limit: Duration) -> Result<()> {
        // It may have been shown before anyone was attached: an empty name brings another one.
        wait::until("a login prompt", limit, || {
            let shown = self.look_for(&[LOGIN], PROMPT)?;
            if shown.is_none() {
                self.send("\n")?;
            }
            Ok(shown)
        })
        .map(drop)
        .with_context(|| format!("the console shows {:?}", self.unread))
    }

    /// Waits for a login prompt and logs in; without a password, where nobody is asked for one. A machine that boots
    /// for the first time may show a prompt before it has set the password: who is refused tries again.
    ///
    /// # Errors
    /// When nobody is let in within `limit`, or a prompt is not answered.
    pub fn log_in(&mut self, user: &str, password: Option<&str>, limit: Duration) -> Result<()> {
        wait::until("a login", limit, || {
            self.expect_login(limit)?;
            self.send(&format!("{user}\n"))?;
            if let Some(password) = password {
                self.expect("Password: ", ANSWER)?;
                self.send(&format!("{password}\n"))?;
            }
            let shell = if user == "root" { "# " } else { "$ " };
            let (_, answer) = self.expect_any(&[shell, "Login incorrect\n"], ANSWER)?;
            Ok((answer == shell).then_some(()))
        })?;
        // A shell that is no terminal's shows neither prompts nor what it is told.
        self.send("stty -echo; echo rea''dy; sh 2>&1 | cat; exit\n")?;
        self.expect("ready\n", ANSWER).map(drop)
    }

    /// Runs a shell script of whole lines that must succeed, and yields its trimmed output.
    ///
    /// # Errors
    /// When it exits with another code than 0, with its output, or does not end.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.run_within(script, ANSWER)
    }

    /// As [`Self::run`], with another time limit.
    ///
    /// # Errors
    /// When it exits with another code than 0, with its output, or does not end.
    pub fn run_within(&mut self, script: &str, limit: Duration) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        self.send(&format!(
            "echo @{number}@; ({script}\n) < /dev/null; echo @{number}=$?=\n"
        ))?;
        self.expect(&format!("@{number}@\n"), ANSWER)?;
        let output = self.expect(&format!("@{number}="), limit)?;
        let code = self.expect("=", ANSWER)?;
        ensure!(code == "0", "{script:?} exited with {code}: {output}");
        Ok(output.trim().to_owned())
    }
}
