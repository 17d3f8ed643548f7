//! How long steps show that they are alive: a spinner with the time and the last line of output in a terminal, one line at the
//! start and one at the end in a log. Everything goes to stderr; stdout belongs to results.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step that takes more than a moment.
pub struct Step {
    name: Cow<'static, str>,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Begins a step and shows its name.
    pub fn start(name: impl Into<Cow<'static, str>>) -> Self {
        let name = name.into();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner().with_message(String::new());
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
            {
                spinner.set_style(style);
            }
            spinner.set_prefix(name.to_string());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        if spinner.is_none() {
            eprintln!("xtask: {name}");
        }
        Self {
            name,
            started: Instant::now(),
            spinner,
        }
    }

    /// Shows what the step is at; only in a terminal.
    pub fn detail(&self, text: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(text.to_owned());
        }
    }

    /// Ends the step and shows how long it took.
    pub fn done(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("xtask: {}: done in {seconds:.1} s", self.name);
    }
}
