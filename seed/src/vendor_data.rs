//! `vendor-data`: what the pod says of a machine, below what its user says.
//!
//! It has two parts. The first is a cloud-config, of which the user's data replaces every key that
//! it has itself. The second is a boot hook: cloud-init runs it at every boot, as soon as it has read
//! the data (`cloudinit/handlers/boot_hook.py`, frequency `PER_ALWAYS`), and no key of the user's
//! takes its place. A user who wants none of it says `vendor_data: {enabled: false}`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::network::Resolver;
use crate::{environment, resolv_conf};

/// Between the parts. None can have it: they are base64.
const BOUNDARY: &str = "podvisor-part";
/// Characters of a line of base64 (RFC 2045).
const LINE_LEN: usize = 76;

/// The agent as a service of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The program, which is on the seed disk as [`crate::AGENT_FILE`].
    pub program: Vec<u8>,
    /// Shell commands that start it; run at every boot.
    pub start: String,
    /// Shell commands that wait for what it sets up; run last.
    pub wait: Option<String>,
}

#[derive(Serialize)]
struct CloudConfig {
    manage_etc_hosts: &'static str,
    updates: Updates,
}

#[derive(Serialize)]
struct Updates {
    network: Events,
}

#[derive(Serialize)]
struct Events {
    when: [&'static str; 2],
}

/// A machine keeps its disk, and its instance-id with it, over the life of a pod; the next pod has
/// other addresses. By default cloud-init looks at `network-config` at the first boot only
/// (`cloudinit/stages.py`, `update_event_enabled`).
const CLOUD_CONFIG: CloudConfig = CloudConfig {
    // The machine's name leads to itself, and the user's own lines stay (cc_update_etc_hosts).
    manage_etc_hosts: "localhost",
    updates: Updates {
        network: Events {
            when: ["boot-new-instance", "boot"],
        },
    },
};

/// The document.
pub(crate) fn of(
    environment: &[(String, String)],
    resolver: &Resolver,
    agent: Option<&Agent>,
) -> Result<String, serde_json::Error> {
    // JSON is YAML, and has no surprises in it.
    let config = serde_json::to_string_pretty(&CLOUD_CONFIG)?;
    let config = format!("#cloud-config\n{config}\n");
    let hook = hook(environment, resolver, agent);
    Ok(format!(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\n\n\
         {}{}--{BOUNDARY}--\n",
        part("text/cloud-config", "podvisor.cfg", &config),
        part("text/cloud-boothook", "podvisor-boot.sh", &hook),
    ))
}

/// The boot hook. What fails in it leaves the rest alone.
fn hook(environment: &[(String, String)], resolver: &Resolver, agent: Option<&Agent>) -> String {
    let mut script = "#cloud-boothook\n#!/bin/sh\n\
                      # What the pod says of this machine; from its seed disk, at every boot.\n"
        .to_owned();
    if let Some(agent) = agent {
        // First: whatever else fails, there is a way to find out why.
        script += &format!("(\n{}\n)\n", agent.start.trim_end());
    }
    script += &environment::commands(environment);
    script += &resolv_conf::commands(resolver);
    if let Some(wait) = agent.and_then(|agent| agent.wait.as_ref()) {
        script += &format!("(\n{}\n)\n", wait.trim_end());
    }
    script += "exit 0\n";
    script
}

fn part(kind: &str, name: &str, text: &str) -> String {
    let encoded = STANDARD.encode(text);
    let mut lines = String::new();
    for (place, character) in encoded.chars().enumerate() {
        if place > 0 && place % LINE_LEN == 0 {
            lines.push('\n');
        }
        lines.push(character);
    }
    format!(
        "--{BOUNDARY}\nContent-Type: {kind}; charset=\"utf-8\"\n\
         Content-Transfer-Encoding: base64\n\
         Content-Disposition: attachment; filename=\"{name}\"\n\n{lines}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn parts_are_what_they_are_called() {
        let document = of(&[], &Resolver::default(), None).unwrap();
        let bodies: Vec<String> = document
            .split("--podvisor-part")
            .filter_map(|part| part.split_once("\n\n"))
            .skip(1)
            .map(|(_, body)| body.replace('\n', ""))
            .map(|body| String::from_utf8(STANDARD.decode(body).unwrap()).unwrap())
            .collect();
        assert_eq!(bodies.len(), 2);
        assert!(bodies[0].starts_with("#cloud-config\n{"));
        assert!(bodies[1].starts_with("#cloud-boothook\n#!/bin/sh\n"));
        let longest = document.lines().map(str::len).max();
        assert!(longest <= Some(LINE_LEN));
    }

    #[test]
    fn an_agent_that_fails_or_exits_leaves_the_rest_alone() {
        let agent = Agent {
            program: Vec::new(),
            start: "echo started\nexit 3".into(),
            wait: Some("echo waited\nexit 4".into()),
        };
        let script = hook(&[], &Resolver::default(), Some(&agent));
        assert!(script.ends_with("(\necho waited\nexit 4\n)\nexit 0\n"));
        // All that follows the agent's part is replaced: it would change this machine.
        let (head, _) = script.split_once("mkdir").unwrap();
        let run = Command::new("sh")
            .arg("-c")
            .arg(format!("{head}\necho went on"))
            .output()
            .unwrap();
        assert_eq!(run.stdout, b"started\nwent on\n");
    }
}
