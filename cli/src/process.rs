//! What every program that we start has in common.

use std::process::Command;

/// Makes the kernel kill the program when the thread that starts it ends (Linux), so that none is left behind even when
/// we are killed. The thread must do nothing but wait for it.
pub fn die_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;

        use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

        let parent = getpid();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before the line above.
            match getppid() == Some(parent) {
                true => Ok(()),
                false => Err(rustix::io::Errno::CHILD.into()),
            }
        };
        // SAFETY: between fork and exec only `prctl` and `getppid` are called, which are async-signal-safe; nothing is
        // allocated and no lock is taken, since both errors are plain numbers.
        unsafe { command.pre_exec(die_with_parent) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// What may help when one of llama.cpp's programs ended with this status; empty when nothing is known.
pub fn crash_hint(status: &str) -> &'static str {
    match status {
        // Some virtual machines promise AMX and fault when it is used. Only repacked weights are multiplied with it.
        _ if status.contains("SIGILL") || status.contains("SIGSEGV") => {
            "; if this machine promises instructions that it does not have, '-- --no-repack' avoids them"
        }
        _ if status.contains("SIGKILL") => {
            "; the kernel does that when memory runs out: a smaller context (--ctx, num_ctx) or a smaller --ram takes less"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crashes_have_a_hint() {
        assert!(crash_hint("signal: 4 (SIGILL) (core dumped)").contains("--no-repack"));
        assert!(crash_hint("signal: 9 (SIGKILL)").contains("--ram"));
        assert_eq!(crash_hint("exit status: 1"), "");
    }
}
