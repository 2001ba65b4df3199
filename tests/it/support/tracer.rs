//! A service that dies at a chosen system call: ptrace stops every thread before each call, and those that would change
//! something in one folder are counted.

use std::{
    fs,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use pete::{Ptracer, Registers, Restart, Stop, Tracee};
use rustix::process::{Pid, Signal, kill_process};

/// Where a call says what it changes.
#[derive(Debug, Clone, Copy)]
enum Argument {
    /// A path in this argument.
    Path(usize),
    /// A file descriptor in the first argument.
    Descriptor,
    /// A path in the second argument, if the flags in the third may create or cut a file.
    Opened,
}

/// The calls on x86-64 that change files, folders or what is safe on the disk.
const CALLS: &[(u64, &str, Argument)] = &[
    (1, "write", Argument::Descriptor),
    (18, "pwrite64", Argument::Descriptor),
    (20, "writev", Argument::Descriptor),
    (73, "flock", Argument::Descriptor),
    (74, "fsync", Argument::Descriptor),
    (75, "fdatasync", Argument::Descriptor),
    (77, "ftruncate", Argument::Descriptor),
    (82, "rename", Argument::Path(0)),
    (83, "mkdir", Argument::Path(0)),
    (84, "rmdir", Argument::Path(0)),
    (86, "link", Argument::Path(0)),
    (87, "unlink", Argument::Path(0)),
    (90, "chmod", Argument::Path(0)),
    (91, "fchmod", Argument::Descriptor),
    (257, "openat", Argument::Opened),
    (258, "mkdirat", Argument::Path(1)),
    (263, "unlinkat", Argument::Path(1)),
    (264, "renameat", Argument::Path(1)),
    (265, "linkat", Argument::Path(1)),
    (268, "fchmodat", Argument::Path(1)),
    (316, "renameat2", Argument::Path(1)),
];

/// `O_CREAT` and `O_TRUNC`.
const CHANGING_FLAGS: u64 = 0o1100;

/// A process under the tracer. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Traced {
    seen: Arc<Seen>,
    process: i32,
    tracer: Option<JoinHandle<Child>>,
}

#[derive(Debug, Default)]
struct Seen {
    calls: Mutex<Vec<String>>,
    killed: AtomicBool,
}

impl Seen {
    /// Says how many there are now.
    fn note(&self, call: String) -> usize {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(call);
        calls.len()
    }
}

impl Traced {
    /// Starts the command, and kills it with `SIGKILL` before its call number `kill_at` (from 1) that would change
    /// something in `folder`. `started` gets the process right after its start, to take its streams.
    pub(crate) fn start(
        command: Command,
        folder: &Path,
        kill_at: usize,
        started: impl FnOnce(&mut Child) + Send + 'static,
    ) -> Self {
        let seen = Arc::new(Seen::default());
        let (folder, noted) = (folder.to_owned(), seen.clone());
        let (sender, process) = std::sync::mpsc::channel();
        // All of ptrace has to come from the thread that started the process.
        let tracer = thread::spawn(move || {
            let mut ptracer = Ptracer::new();
            let mut child = ptracer.spawn(command).expect("start a process to trace");
            started(&mut child);
            sender.send(child.id()).expect("a test that waits");
            follow(&mut ptracer, child.id(), &folder, kill_at, &noted);
            child
        });
        let process = process.recv().expect("a started process");
        Self { seen, process: i32::try_from(process).expect("a process id"), tracer: Some(tracer) }
    }

    /// Whether the call to die at has come.
    pub(crate) fn was_killed(&self) -> bool {
        self.seen.killed.load(Ordering::SeqCst)
    }

    /// The calls so far that would change something in the folder; the last one was not made if it died there.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.seen.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.process) {
            let _ = kill_process(pid, Signal::KILL);
        }
        // With its thread the tracer lets go of the dead, and only then can they be waited for.
        if let Some(Ok(mut child)) = self.tracer.take().map(JoinHandle::join) {
            let _ = child.wait();
        }
    }
}

/// Lets the process run until it ends or is killed.
fn follow(ptracer: &mut Ptracer, process: u32, folder: &Path, kill_at: usize, seen: &Seen) {
    let pid = Pid::from_raw(process as i32).expect("a process id");
    while let Ok(Some(tracee)) = ptracer.wait() {
        if tracee.stop == Stop::SyscallEnter
            && !seen.killed.load(Ordering::SeqCst)
            && let Some(call) = change_in(&tracee, folder)
            && seen.note(call) == kill_at
        {
            seen.killed.store(true, Ordering::SeqCst);
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = ptracer.restart(tracee, Restart::Syscall);
    }
}

/// The call that a thread is about to make, if it would change something in the folder.
fn change_in(tracee: &Tracee, folder: &Path) -> Option<String> {
    let registers = tracee.registers().ok()?;
    let (_, name, argument) = CALLS.iter().find(|(number, ..)| *number == registers.orig_rax)?;
    let path = match argument {
        Argument::Path(index) => path_at(tracee, argument_of(&registers, *index))?,
        Argument::Descriptor => fs::read_link(format!("/proc/{}/fd/{}", tracee.pid, registers.rdi as RawFd)).ok()?,
        Argument::Opened if registers.rdx & CHANGING_FLAGS != 0 => path_at(tracee, registers.rsi)?,
        Argument::Opened => return None,
    };
    path.starts_with(folder).then(|| format!("{name} {}", path.strip_prefix(folder).unwrap_or(&path).display()))
}

fn argument_of(registers: &Registers, index: usize) -> u64 {
    if index == 0 { registers.rdi } else { registers.rsi }
}

fn path_at(tracee: &Tracee, address: u64) -> Option<PathBuf> {
    let mut bytes = vec![0; 4096];
    let read = tracee.read_memory_mut(address, &mut bytes).ok()?;
    let end = bytes[..read].iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned().into())
}
