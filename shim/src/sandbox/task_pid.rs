//! The numbers that containers have among the host's processes. containerd asks for one of each
//! task and makes paths of them: `/proc/NUMBER/ns/pid` is how a container says whose processes it
//! joins. A container has no process of the host, so a thread of this one stands for it, asleep.

use std::convert::Infallible;
use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// The thread's stack, in bytes: it only waits.
const STACK_LEN: usize = 16 << 10;

/// A number that is a task's alone for as long as this lives.
#[derive(Debug)]
pub(super) struct TaskPid {
    number: u32,
    /// None where the number is this process's own.
    thread: Option<Standing>,
}

/// A thread that ends with this.
#[derive(Debug)]
struct Standing {
    /// Nothing is ever sent: the thread waits for the end of the channel.
    hold: Option<mpsc::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl TaskPid {
    /// This process's own number, which is the pod's.
    pub(super) fn of_pod() -> Self {
        Self {
            number: std::process::id(),
            thread: None,
        }
    }

    /// A number for a container.
    ///
    /// # Errors
    /// When the host allows no further thread.
    pub(super) fn for_container() -> io::Result<Self> {
        let (hold, end) = mpsc::channel::<Infallible>();
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK_LEN)
            .spawn(move || {
                let _ = tell.send(nix::unistd::gettid());
                // Comes back with an error when the sender is dropped.
                let _ = end.recv();
            })?;
        let number = told.recv().map_err(io::Error::other)?;
        Ok(Self {
            number: number.as_raw().unsigned_abs(),
            thread: Some(Standing {
                hold: Some(hold),
                thread: Some(thread),
            }),
        })
    }

    /// The number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether the number stands for one container alone.
    pub(super) fn is_container(&self) -> bool {
        self.thread.is_some()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.hold = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_a_number_that_the_host_knows() {
        let (first, second) = (
            TaskPid::for_container().unwrap(),
            TaskPid::for_container().unwrap(),
        );
        let pod = TaskPid::of_pod();
        assert_ne!(first.number(), second.number());
        assert_ne!(first.number(), pod.number());
        assert!(first.is_container() && !pod.is_container());
        let namespace =
            |pid: &TaskPid| std::fs::read_link(format!("/proc/{}/ns/pid", pid.number())).unwrap();
        assert_eq!(namespace(&first), namespace(&pod));
        let number = second.number();
        drop(second);
        assert!(!std::path::Path::new(&format!("/proc/self/task/{number}")).exists());
    }
}
