//! A container's variables, for all that logs in to a machine: `/etc/environment` for sessions that
//! go through PAM (pam_env(8)), `/etc/profile.d` for login shells that do not.

use crate::shell;

/// What a machine has of its own.
const OWN: [&str; 10] = [
    "HOME", "HOSTNAME", "LOGNAME", "OLDPWD", "PATH", "PWD", "SHELL", "SHLVL", "TERM", "USER",
];
const PROFILE: &str = "/etc/profile.d/podvisor.sh";
const ENVIRONMENT: &str = "/etc/environment";
const BEGIN: &str = "# podvisor: variables of the pod";
const END: &str = "# podvisor: end";

/// Commands that give a machine these variables. Those of an earlier boot go: its disk may be older
/// than the pod.
pub fn commands(variables: &[(String, String)]) -> String {
    let kept: Vec<_> = variables.iter().filter(|(name, _)| is_kept(name)).collect();
    let profile: String = kept
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", shell::quote(value)))
        .collect();
    let lines: String = kept
        .iter()
        .filter(|(_, value)| fits_pam(value))
        .map(|(name, value)| format!("{name}={}\n", pam_quote(value)))
        .collect();
    let mut commands = format!(
        "mkdir -p /etc/profile.d\n{}",
        shell::here_document(&format!("cat > {PROFILE}"), &profile)
    );
    commands += &format!(
        "touch {ENVIRONMENT}\nsed -i '/^{BEGIN}$/,/^{END}$/d' {ENVIRONMENT}\n\
         [ -z \"$(tail -c 1 {ENVIRONMENT})\" ] || echo >> {ENVIRONMENT}\n"
    );
    if !lines.is_empty() {
        let block = format!("{BEGIN}\n{lines}{END}\n");
        commands += &shell::here_document(&format!("cat >> {ENVIRONMENT}"), &block);
    }
    commands
}

/// Whether a machine is given the variable: not what it has of its own, nor a name that no shell can
/// have.
fn is_kept(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty()
        && name.bytes().all(is_word)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !OWN.contains(&name)
}

/// pam_env ends a value at the line's end and, before its version 1.4, at a `#`; it knows no escapes.
/// Such a value is in the profile only: none is better than half of one.
fn fits_pam(value: &str) -> bool {
    !value.contains(['\n', '\r', '#'])
}

/// pam_env takes one pair of quotes away, whatever is between them.
fn pam_quote(value: &str) -> String {
    format!("\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> String {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        commands(&variables)
    }

    #[test]
    fn a_variable_is_in_both_places() {
        let commands = of(&[("GREETING", "it's \"me\"")]);
        assert!(commands.contains("export GREETING='it'\\''s \"me\"'\n"));
        assert!(commands.contains("\nGREETING=\"it's \"me\"\"\n"));
    }

    #[test]
    fn what_pam_would_cut_is_in_the_profile_only() {
        let commands = of(&[("KEY", "a\nb"), ("TOKEN", "a#b")]);
        assert!(commands.contains("export KEY='a\nb'\nexport TOKEN='a#b'\n"));
        assert!(!commands.contains("KEY=\"") && !commands.contains("TOKEN=\""));
    }

    #[test]
    fn a_machines_own_variables_stay_its_own() {
        let commands = of(&[("PATH", "/x"), ("my.name", "y"), ("1A", "z")]);
        for value in ["/x", "my.name", "1A"] {
            assert!(!commands.contains(value), "{commands}");
        }
    }
}
