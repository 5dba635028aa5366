//! Running one of llama.cpp's programs in the foreground: it has the terminal, we show how streaming goes.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal as Signals, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::log_lines::{is_worth_showing, message_of};
use crate::process::{crash_hint, die_with_parent};
use crate::rates::Follower;
use crate::scratch::Scratch;
use crate::status_line::StatusLine;

/// What to run.
#[derive(Debug)]
pub struct Foreground {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Environment variables, beside ours.
    pub environment: Vec<(String, String)>,
    /// Whether it may read what is typed.
    pub reads_input: bool,
    /// Whether a status line is wanted.
    pub status: bool,
    /// Whether its whole log is shown, or errors and what libhypura says only.
    pub verbose: bool,
}

/// The exit status of llama.cpp's programs after an interrupt.
const INTERRUPTED: i32 = 130;

/// The last lines of a log that are shown when the program crashes.
const LAST_LINES: usize = 5;

impl Foreground {
    /// Runs it to its end; its exit status is ours.
    ///
    /// # Errors
    /// A sentence when it cannot be started or crashes.
    pub fn run(self) -> Result<ExitCode, String> {
        // One thread: the program must end with the thread that started it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot wait for {}: {error}", self.program.display()))?;
        let scratch = Scratch::make("run")?;
        let stats = std::env::var_os("HYPURA_STATS").map_or_else(|| scratch.path().join("stats.json"), PathBuf::from);
        let (status, log) = runtime.block_on(self.attend(stats))?;
        self.outcome(status, &log)
    }

    async fn attend(&self, stats: PathBuf) -> Result<(ExitStatus, Vec<String>), String> {
        let failed = |error: std::io::Error| format!("{} cannot be run: {error}", self.program.display());
        let listen = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
        // An interrupt from the terminal reaches the program as well, which decides what it means.
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut ends = [listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
        let mut child = self.start(&stats).map_err(failed)?;
        let Some(stderr) = child.stderr.take() else { return Err("the program has no log".to_owned()) };
        let mut lines = BufReader::new(stderr).split(b'\n');
        let mut log: Vec<String> = Vec::new();
        let mut follower = Follower::new(stats);
        let mut status_line = if self.status { StatusLine::begin() } else { None };
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                line = lines.next_segment() => match line {
                    Ok(Some(line)) => self.show(String::from_utf8_lossy(&line).into_owned(), &mut log),
                    // It holds the other side until its end.
                    _ => break,
                },
                _ = tick.tick() => if let Some(line) = &mut status_line {
                    line.draw(&follower.line());
                },
                _ = interrupt.recv() => {}
                () = either(&mut ends) => {
                    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
                    if let Some(id) = id {
                        // It may have ended by itself.
                        let _ = kill_process(id, Signals::TERM);
                    }
                }
            }
        }
        child.wait().await.map(|status| (status, log)).map_err(failed)
    }

    fn start(&self, stats: &std::path::Path) -> std::io::Result<Child> {
        let mut command = std::process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .env("HYPURA_STATS", stats)
            .stdin(if self.reads_input { Stdio::inherit() } else { Stdio::null() })
            .stderr(Stdio::piped());
        die_with_parent(&mut command);
        Command::from(command).spawn()
    }

    fn show(&self, line: String, log: &mut Vec<String>) {
        if self.verbose {
            eprintln!("{line}");
        } else if is_worth_showing(&line) {
            eprintln!("{}", message_of(&line));
        }
        if log.len() == LAST_LINES {
            log.remove(0);
        }
        log.push(line);
    }

    fn outcome(&self, status: ExitStatus, log: &[String]) -> Result<ExitCode, String> {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        match (status.code(), status.signal()) {
            (Some(code), _) => {
                if !self.verbose && ![0, INTERRUPTED].contains(&code) {
                    eprintln!("hypura: {name} ended with status {code}; --verbose shows its whole log");
                }
                Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
            }
            // Whoever has stopped it knows that.
            (_, Some(signal)) if [Signals::INT, Signals::TERM].map(Signals::as_raw).contains(&signal) => {
                Ok(ExitCode::from(128 + u8::try_from(signal).unwrap_or(0)))
            }
            _ => {
                let words =
                    if self.verbose || log.is_empty() { String::new() } else { format!(": {}", log.join("; ")) };
                let hint = crash_hint(&status.to_string());
                Err(format!("{name} crashed ({status}){words}; --verbose shows its whole log{hint}"))
            }
        }
    }
}

async fn either(signals: &mut [Signal; 2]) {
    let [one, other] = signals;
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Foreground {
        Foreground {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("HYPURA_TEST_X".into(), "7".into())],
            reads_input: false,
            status: false,
            verbose: false,
        }
    }

    #[test]
    fn the_exit_status_is_passed_on() {
        assert_eq!(shell("exit $HYPURA_TEST_X").run(), Ok(ExitCode::from(7)));
        assert_eq!(shell("test -n \"$HYPURA_STATS\"").run(), Ok(ExitCode::SUCCESS));
        assert_eq!(shell("kill -TERM $$").run(), Ok(ExitCode::from(143)));
    }

    #[test]
    fn crashes_and_missing_programs_are_told() {
        let problem = shell("echo last words >&2; kill -SEGV $$").run().unwrap_err();
        assert!(problem.contains("sh crashed (signal: 11 (SIGSEGV)") && problem.contains("last words"), "{problem}");
        let missing = Foreground { program: "/nowhere/llama-cli".into(), ..shell("") };
        assert!(missing.run().unwrap_err().contains("/nowhere/llama-cli cannot be run"));
    }
}
