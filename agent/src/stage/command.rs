//! The last steps of a stage: working directory, privileges, and execve with
//! the container's PATH.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::seccomp::Filter;
use super::{StageError, security};
use crate::oci::Process;

/// Where a container's users are told.
const PASSWD: &str = "/etc/passwd";
/// Most of it that is read to find a home directory.
const MAX_PASSWD: u64 = 1 << 20;

/// A process ready to be executed.
pub struct Command {
    process: Process,
    confinement: Confinement,
    environment: Vec<CString>,
}

/// What a process may do beside what its user may.
enum Confinement {
    /// What the container's specification says, with its system call filter.
    Container(Option<Filter>),
    /// Whatever its user may.
    None,
}

impl Command {
    /// Checks what can be checked before the word to go.
    ///
    /// # Errors
    ///
    /// [`StageError::Step`] when the working directory cannot be entered.
    pub fn new(process: Process, filter: Option<Filter>) -> Result<Self, StageError> {
        Self::confined(process, Confinement::Container(filter))
    }

    /// A process that is not confined.
    ///
    /// # Errors
    ///
    /// As [`Command::new`].
    pub fn of_machine(process: Process) -> Result<Self, StageError> {
        Self::confined(process, Confinement::None)
    }

    fn confined(process: Process, confinement: Confinement) -> Result<Self, StageError> {
        let cwd = process.cwd.as_str();
        rustix::process::chdir(cwd)
            .map_err(StageError::step(format!("enter process.cwd {cwd}")))?;
        // A directory outside the container shows as "(unreachable)…".
        let real = rustix::process::getcwd(Vec::new())
            .map_err(StageError::step(format!("enter process.cwd {cwd}")))?;
        if !real.to_bytes().starts_with(b"/") {
            return Err(StageError::Unsupported(format!(
                "process.cwd {cwd} leaves the container"
            )));
        }
        let environment = environment(&process)?;
        Ok(Self {
            process,
            confinement,
            environment,
        })
    }

    /// Gives up the agent's privileges and executes the command.
    ///
    /// # Errors
    ///
    /// Comes back only with an error, [`StageError::NotFound`] and
    /// [`StageError::PermissionDenied`] among them.
    pub fn execute(self) -> Result<Infallible, StageError> {
        let arguments = c_strings(&self.process.args)?;
        let name = self.process.args.first().map_or("", String::as_str);
        let path = variable(&self.process.env, "PATH").unwrap_or_default();
        let candidates = candidates(name, path);
        match &self.confinement {
            Confinement::Container(filter) => security::apply(&self.process, filter.as_ref())?,
            Confinement::None => security::become_machine_user(&self.process)?,
        }
        crate::sys::signal::restore_defaults();
        let mut failure = Failure::default();
        for candidate in &candidates {
            let Some(error) = execve(candidate, &arguments, &self.environment) else {
                continue;
            };
            failure.add(candidate, error);
            if failure.is_final() {
                break;
            }
        }
        Err(failure.into_error(name))
    }
}

/// The worst that the search met, so that the message says what helps.
#[derive(Default)]
struct Failure {
    denied: bool,
    other: Option<(CString, io::Error)>,
}

impl Failure {
    fn add(&mut self, candidate: &CStr, error: io::Error) {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                // Present, but its interpreter is not.
                if rustix::fs::access(candidate, rustix::fs::Access::EXISTS).is_ok() {
                    self.other = Some((candidate.to_owned(), error));
                }
            }
            Some(libc::EACCES) => self.denied = true,
            _ => self.other = Some((candidate.to_owned(), error)),
        }
    }

    fn is_final(&self) -> bool {
        self.other.is_some()
    }

    fn into_error(self, name: &str) -> StageError {
        match self.other {
            Some((candidate, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                let path = candidate.to_string_lossy().into_owned();
                StageError::NotFound(format!("exec {path}: its interpreter does not exist"))
            }
            Some((candidate, error)) => StageError::PermissionDenied(format!(
                "exec {}: {error}",
                candidate.to_string_lossy()
            )),
            None if self.denied => {
                StageError::PermissionDenied(format!("exec: \"{name}\": permission denied"))
            }
            None if name.contains('/') => StageError::NotFound(format!(
                "exec: \"{name}\": stat {name}: no such file or directory"
            )),
            None => StageError::NotFound(format!(
                "exec: \"{name}\": executable file not found in $PATH"
            )),
        }
    }
}

/// Every file that `name` may mean, in order.
fn candidates(name: &str, path: &str) -> Vec<CString> {
    if name.contains('/') {
        return CString::new(name).into_iter().collect();
    }
    // An empty element would mean the working directory; runc refuses it, too.
    let directories = path
        .split(':')
        .filter(|directory| directory.starts_with('/'));
    directories
        .filter_map(|directory| CString::new(format!("{directory}/{name}")).ok())
        .collect()
}

/// execve(2); comes back only with its error.
fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> Option<io::Error> {
    let pointers = |strings: &[CString]| {
        let ends = [std::ptr::null()];
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain(ends)
            .collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both vectors are NULL-terminated arrays of C strings that the
    // callers' slices keep alive.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Some(io::Error::last_os_error())
}

fn environment(process: &Process) -> Result<Vec<CString>, StageError> {
    let mut environment = c_strings(&process.env)?;
    if variable(&process.env, "HOME").is_none_or(str::is_empty) {
        let home = home_of(Path::new(PASSWD), process.user.uid);
        let home = home.unwrap_or_else(|| "/".to_owned());
        environment.extend(CString::new(format!("HOME={home}")).ok());
    }
    Ok(environment)
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, StageError> {
    texts
        .iter()
        .map(|text| CString::new(text.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|_| StageError::Unsupported("process.args or env contains a NUL byte".to_owned()))
}

/// The last value of a variable, as getenv of most shells sees it.
fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    let mut values = environment
        .iter()
        .filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
    values.next_back()
}

/// A user's home directory as the container's file of users has it.
fn home_of(passwd: &Path, uid: u32) -> Option<String> {
    let mut text = String::new();
    // Only a regular file: opening a FIFO, and reading one or a device, could block for ever.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(passwd, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.take(MAX_PASSWD).read_to_string(&mut text).ok()?;
    home_in(&text, uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_in_every_absolute_directory_of_the_path() {
        let found = candidates("sh", "/usr/bin::relative:/bin");
        assert_eq!(found, [c"/usr/bin/sh".to_owned(), c"/bin/sh".to_owned()]);
        assert_eq!(candidates("/bin/sh", "/usr/bin"), [c"/bin/sh".to_owned()]);
        assert!(candidates("sh", "").is_empty());
    }

    #[test]
    fn a_missing_command_is_told_as_runc_tells_it() {
        let error = Failure::default().into_error("foo");
        assert_eq!(
            error.to_string(),
            r#"exec: "foo": executable file not found in $PATH"#
        );
        assert!(matches!(error, StageError::NotFound(_)));
        let error = Failure {
            denied: true,
            other: None,
        }
        .into_error("/foo");
        assert!(matches!(error, StageError::PermissionDenied(_)));
    }

    #[test]
    fn a_file_without_its_interpreter_is_told_apart() {
        let mut failure = Failure::default();
        failure.add(
            c"/proc/self/exe",
            io::Error::from_raw_os_error(libc::ENOENT),
        );
        assert_eq!(
            failure.into_error("exe").to_string(),
            "exec /proc/self/exe: its interpreter does not exist"
        );
    }

    #[test]
    fn home_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33:web:/var/www:/bin/sh\n";
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_in(passwd, 5), None);
    }

    #[test]
    fn only_a_regular_file_of_users_is_read_and_nothing_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let passwd = directory.path().join("passwd");
        std::fs::write(&passwd, "web:x:33:33:web:/var/www:/bin/sh\n").unwrap();
        assert_eq!(home_of(&passwd, 33).as_deref(), Some("/var/www"));
        let fifo = directory.path().join("fifo");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::RUSR, 0).unwrap();
        assert_eq!(home_of(&fifo, 33), None);
        assert_eq!(home_of(&directory.path().join("none"), 33), None);
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let environment = [
            "PATH=/a".to_owned(),
            "PATHS=/x".to_owned(),
            "PATH=/b".to_owned(),
        ];
        assert_eq!(variable(&environment, "PATH"), Some("/b"));
    }
}
