//! How a machine resolves names where nothing of its own cares for that: `/etc/resolv.conf`
//! (resolv.conf(5)). Images without systemd-resolved, resolvconf or NetworkManager learn of name servers
//! by DHCP and by their network's configuration, and write them down nowhere.

use crate::network::Resolver;
use crate::shell;

const FILE: &str = "/etc/resolv.conf";
/// The first line of a file of ours, which is written anew at every boot: the next pod may have others.
const MARK: &str = "# podvisor: the pod's name servers, as this machine has no resolver of its own";
/// resolv.conf(5) stops there.
const SERVERS_MAX: usize = 3;

/// Commands that write the file unless there is one, be it a link that leads nowhere yet.
pub fn commands(resolver: &Resolver) -> String {
    commands_for(FILE, resolver)
}

fn commands_for(file: &str, resolver: &Resolver) -> String {
    if resolver.servers.is_empty() {
        return String::new();
    }
    let mut text = format!("{MARK}\n");
    if !resolver.search.is_empty() {
        text += &format!("search {}\n", resolver.search.join(" "));
    }
    for server in resolver.servers.iter().take(SERVERS_MAX) {
        text += &format!("nameserver {server}\n");
    }
    let quoted = shell::quote(file);
    let write = shell::here_document(&format!("cat > {quoted}"), &text);
    format!(
        "if [ ! -L {quoted} ] && {{ [ ! -s {quoted} ] || grep -qxF {} {quoted}; }}; then\n{write}fi\n",
        shell::quote(MARK)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn run(file: &Path, resolv_conf: &str) {
        let commands = commands_for(file.to_str().unwrap(), &Resolver::parse(resolv_conf));
        let run = Command::new("sh").arg("-c").arg(commands).status();
        assert!(run.unwrap().success());
    }

    #[test]
    fn a_missing_file_is_written_and_follows_the_pod() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        run(&file, "");
        assert!(!file.exists(), "nothing to write");
        for server in ["10.96.0.10", "10.96.0.11"] {
            run(
                &file,
                &format!("search a.test b.test\nnameserver {server}\n"),
            );
            let text = fs::read_to_string(&file).unwrap();
            let lines: Vec<&str> = text.lines().skip(1).collect();
            assert_eq!(
                lines,
                ["search a.test b.test", &format!("nameserver {server}")]
            );
        }
    }

    #[test]
    fn a_machines_own_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        run(&file, "nameserver 10.96.0.10\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
        fs::remove_file(&file).unwrap();
        let stub = folder.path().join("stub-resolv.conf");
        symlink(&stub, &file).unwrap();
        run(&file, "nameserver 10.96.0.10\n");
        assert!(!stub.exists(), "written through a link");
    }
}
