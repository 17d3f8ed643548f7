//! What was found, as a table and as JSON.

use std::fmt::{self, Display};

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing is to be done.
    pub remedy: String,
}

impl Check {
    /// As it should be.
    pub fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: true,
            found: found.into(),
            remedy: String::new(),
        }
    }

    /// Good enough, yet there is something to know.
    pub fn warning(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            ok: true,
            ..Self::bad(name, found, remedy)
        }
    }

    /// Not as it should be.
    pub fn bad(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            ok: false,
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether pods can run here.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// For programs: `{"ok": …, "checks": [{"name", "ok", "found", "remedy"}, …]}`.
    pub fn to_json(&self) -> String {
        serde_json::json!({ "ok": self.is_good(), "checks": self.checks }).to_string()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .checks
            .iter()
            .map(|check| check.name.len())
            .max()
            .unwrap_or(0);
        for Check {
            name,
            ok,
            found,
            remedy,
        } in &self.checks
        {
            let mark = match (*ok, remedy.is_empty()) {
                (true, true) => "ok",
                (true, false) => "warning",
                (false, _) => "MISSING",
            };
            writeln!(f, "{name:<width$}  {mark:<7}  {found}")?;
            if !remedy.is_empty() {
                writeln!(f, "{:<width$}  {:<7}  -> {remedy}", "", "")?;
            }
        }
        let missing = self.checks.iter().filter(|check| !check.ok).count();
        match missing {
            0 => writeln!(f, "This machine can run pods in virtual machines."),
            missing => writeln!(f, "{missing} of {} are missing.", self.checks.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_missing_is_told_with_its_remedy() {
        let report = Report {
            checks: vec![
                Check::good("kvm", "version 12"),
                Check::bad("tun", "no device", "modprobe tun"),
            ],
        };
        assert!(!report.is_good());
        let text = report.to_string();
        assert!(
            text.contains("tun  MISSING  no device\n") && text.contains("-> modprobe tun\n"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["checks"][1]["remedy"], "modprobe tun");
    }
}
