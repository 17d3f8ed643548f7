//! Users of the machine: passwd(5) and group(5). No name service is asked: this program is static.

use std::fs::File;
use std::io::Read as _;

/// Most of either file that is read.
const MAX_LEN: u64 = 1 << 20;
/// Where programs are, unless the process says otherwise.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Groups beside the primary one.
    pub groups: Vec<u32>,
}

impl Account {
    /// The user with this number; `None` when the machine has none.
    #[must_use]
    pub fn of(uid: u32) -> Option<Self> {
        Self::parse(uid, &read("/etc/passwd"), &read("/etc/group"))
    }

    fn parse(uid: u32, passwd: &str, group: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, number, _, _, home, shell] = fields.as_slice() else {
                return None;
            };
            (number.parse() == Ok(uid)).then(|| Self {
                name: (*name).to_owned(),
                home: (*home).to_owned(),
                shell: (*shell).to_owned(),
                groups: groups_of(name, group),
            })
        })
    }

    /// What a login sets, of what `environment` lacks.
    #[must_use]
    pub fn environment(&self, environment: &[String]) -> Vec<String> {
        let wanted = [
            ("HOME", self.home.as_str()),
            ("USER", &self.name),
            ("LOGNAME", &self.name),
            ("SHELL", &self.shell),
            ("PATH", PATH),
        ];
        let lacks = |name: &str| {
            let is_set = |entry: &String| {
                entry
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('='))
            };
            !environment.iter().any(is_set)
        };
        let missing = wanted
            .into_iter()
            .filter(|(name, value)| !value.is_empty() && lacks(name));
        missing
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let lines = group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, number, members] = fields.as_slice() else {
            return None;
        };
        let is_member = members.split(',').any(|member| member == user);
        number.parse().ok().filter(|_| is_member)
    });
    lines.collect()
}

fn read(path: &str) -> String {
    let mut text = String::new();
    // A machine without the file has no users.
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_LEN).read_to_string(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\n\
        debian:x:1000:1000:Debian:/home/debian:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,debian\nsudo:x:27:debian\nother:x:5:deb\n";

    #[test]
    fn a_user_has_name_home_shell_and_groups() {
        let debian = Account::parse(1000, PASSWD, GROUP).unwrap();
        assert_eq!((&*debian.name, &*debian.home), ("debian", "/home/debian"));
        assert_eq!(debian.groups, [4, 27]);
        assert_eq!(Account::parse(5, PASSWD, GROUP), None);
    }

    #[test]
    fn what_the_process_says_of_its_environment_stays() {
        let root = Account::parse(0, PASSWD, GROUP).unwrap();
        let set = root.environment(&["PATH=/bin".to_owned(), "HOMER=x".to_owned()]);
        assert_eq!(
            set,
            ["HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash"]
        );
    }
}
