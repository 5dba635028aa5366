//! One llama-server process: started on a private loopback port, watched, and never left behind.
//!
//! It is in a process group of its own, so that an interrupt typed in a terminal reaches only us and requests can be
//! finished first. It cannot outlive us: the kernel kills it when the thread that started it ends (Linux), and that
//! thread does nothing but wait for it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use super::failures::{Failures, Reporter};
use super::upstream::Upstream;
use crate::log_lines::{is_alarming, is_error, is_worth_showing, message_of};
use crate::process;

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// llama-server.
    pub program: PathBuf,
    /// Its arguments, without those about where it listens.
    pub arguments: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// What is shown of its log.
    pub shown: Shown,
}

/// What is shown of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Every line.
    All,
    /// Errors, and what libhypura has decided.
    Important,
    /// Nothing: a failure still tells the last of it.
    Nothing,
}

/// A running process.
#[derive(Debug)]
pub struct Child {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it wants to be told with every request, so that no other program of this machine gets past our own key.
    pub key: String,
    process: Arc<Process>,
    failures: Failures,
    exited: watch::Receiver<Option<String>>,
}

#[derive(Debug)]
struct Process {
    /// `None` once it is over: its number may by then belong to another process.
    id: Mutex<Option<Pid>>,
    log: Mutex<VecDeque<String>>,
    /// Errors while it loads, which are not shown yet: when loading fails, they are told once, as the reason.
    held: Mutex<Option<Vec<String>>>,
}

/// The last lines of the log that are kept for the message about a failure.
const LOG_LINES_MAX: usize = 200;

impl Child {
    /// Starts it; it listens when [`Child::ready`] says so.
    ///
    /// # Errors
    /// A sentence when the program cannot be started.
    pub async fn start(launch: Launch) -> Result<Self, String> {
        let port = free_port().map_err(|error| format!("no loopback port is free: {error}"))?;
        let key = random_key()?;
        let (started, start) = oneshot::channel();
        let (exit, exited) = watch::channel(None);
        let key_of_child = key.clone();
        let reporter = Reporter::default();
        let failures = reporter.failures();
        std::thread::Builder::new()
            .name("llama-server".to_owned())
            .spawn(move || keep(&launch, port, &key_of_child, started, &reporter, &exit))
            .map_err(|error| format!("cannot start a thread for llama-server: {error}"))?;
        let process = start.await.map_err(|_| "the thread of llama-server ended".to_owned())??;
        Ok(Self { address: (Ipv4Addr::LOCALHOST, port).into(), key, process, failures, exited })
    }

    /// The way to it.
    pub fn upstream(&self) -> Upstream {
        Upstream::new(self.address, &self.key, self.failures.clone())
    }

    /// Whether it has ever failed to compute.
    pub fn has_failed(&self) -> bool {
        self.failures.any()
    }

    /// Waits until it answers and returns its `/props`.
    ///
    /// # Errors
    /// How it ended, when it ends instead.
    pub async fn ready(&self) -> Result<Value, String> {
        const INTERVAL: Duration = Duration::from_millis(30);
        let upstream = self.upstream();
        loop {
            tokio::select! {
                // `/props` wants the key, so no other program on the port can pass for ours.
                answer = upstream.get("/props") => match answer {
                    Ok(properties) => {
                        for line in self.process.held.lock().take().into_iter().flatten() {
                            eprintln!("llama-server: {line}");
                        }
                        return Ok(serde_json::from_slice(&properties).unwrap_or_default());
                    }
                    Err(_) => tokio::time::sleep(INTERVAL).await,
                },
                status = self.exited() => {
                    let hint = process::crash_hint(&status);
                    return Err(format!("{} (llama-server ended with {status}){hint}", self.cause()));
                }
            }
        }
    }

    /// The process number, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.id.lock().map(|id| id.as_raw_nonzero().get().unsigned_abs())
    }

    /// Whether it is over.
    pub fn has_exited(&self) -> bool {
        self.exited.borrow().is_some()
    }

    /// Waits for its end; says how it ended.
    pub async fn exited(&self) -> String {
        let mut exited = self.exited.clone();
        let status = exited.wait_for(Option::is_some).await;
        // The sender lives until it has sent.
        status.ok().and_then(|status| status.clone()).unwrap_or_else(|| "it is gone".to_owned())
    }

    /// What it said last, from the first line that tells of a failure on.
    pub fn last_words(&self) -> String {
        let log = self.process.log.lock();
        let failures: Vec<&str> = log.iter().filter(|line| is_alarming(line)).map(|line| message_of(line)).collect();
        let shown = if failures.is_empty() { log.iter().map(|line| message_of(line)).collect() } else { failures };
        shown[shown.len().saturating_sub(8)..].join("; ")
    }

    /// Why it ended, as far as its log tells: the first error, which those after it follow from.
    fn cause(&self) -> String {
        const CHARACTERS_MAX: usize = 300;
        let log = self.process.log.lock();
        let cause = log.iter().find(|line| is_error(line)).or_else(|| log.iter().rfind(|line| is_alarming(line)));
        let cause = cause.or_else(|| log.back()).map_or("it said nothing", |line| message_of(line));
        match cause.char_indices().nth(CHARACTERS_MAX) {
            Some((end, _)) => format!("{}... (--verbose shows all)", &cause[..end]),
            None => cause.to_owned(),
        }
    }

    /// Asks it to end, and makes it end when it does not.
    pub async fn stop(&self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        self.signal(Signal::TERM);
        if tokio::time::timeout(PATIENCE, self.exited()).await.is_err() {
            self.signal(Signal::KILL);
            self.exited().await;
        }
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.id.lock();
        if let Some(id) = *id {
            // The group: whatever the process may have started goes with it. It fails only when the group is gone.
            let _ = rustix::process::kill_process_group(id, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The thread of one process: starts it, reads its log, waits for its end.
fn keep(
    launch: &Launch,
    port: u16,
    key: &str,
    started: oneshot::Sender<Result<Arc<Process>, String>>,
    reporter: &Reporter,
    exit: &watch::Sender<Option<String>>,
) {
    let mut child = match command(launch, port, key).spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(format!("cannot start {}: {error}", launch.program.display())));
            return;
        }
    };
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = Arc::new(Process { id: Mutex::new(id), log: Mutex::default(), held: Mutex::new(Some(Vec::new())) });
    if started.send(Ok(Arc::clone(&process))).is_err() {
        // Nobody waits any more; without this it would run on.
        let _ = child.kill();
    }
    // Ends when the process has: it holds the other side.
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            match launch.shown {
                Shown::All => eprintln!("{line}"),
                Shown::Important if is_worth_showing(&line) => match &mut *process.held.lock() {
                    Some(held) if is_error(&line) => held.push(message_of(&line).to_owned()),
                    _ => eprintln!("llama-server: {}", message_of(&line)),
                },
                Shown::Important | Shown::Nothing => {}
            }
            reporter.read(&line);
            let mut log = process.log.lock();
            if log.len() == LOG_LINES_MAX {
                log.pop_front();
            }
            log.push_back(line);
        }
    }
    // Not reaped before its number is forgotten, so that no signal can reach another process of the same number.
    if let Some(id) = id {
        let _ = rustix::process::waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
    process.id.lock().take();
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    exit.send_replace(Some(status));
}

fn command(launch: &Launch, port: u16, key: &str) -> Command {
    let mut command = Command::new(&launch.program);
    for (name, _) in own_settings() {
        command.env_remove(name);
    }
    command
        .args(&launch.arguments)
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .env("LLAMA_API_KEY", key)
        .envs(launch.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    process::die_with_parent(&mut command);
    command
}

/// Variables of llama-server's own that would change what we count on: where it listens, what it loads.
const OWN_VARIABLES: [&str; 19] = [
    "API_PREFIX",
    "HOST",
    "PORT",
    "REUSE_PORT",
    "SSL_KEY_FILE",
    "SSL_CERT_FILE",
    "MODEL",
    "MODEL_URL",
    "MMPROJ",
    "MMPROJ_URL",
    "HF_REPO",
    "HF_FILE",
    "MODELS_DIR",
    "MODELS_PRESET",
    "CTX_SIZE",
    "N_PARALLEL",
    "KV_UNIFIED",
    "EMBEDDINGS",
    "RERANKING",
];

/// Those that are set.
fn own_settings() -> impl Iterator<Item = (String, std::ffi::OsString)> {
    let names = OWN_VARIABLES.iter().map(|name| format!("LLAMA_ARG_{name}"));
    names.filter_map(|name| std::env::var_os(&name).map(|value| (name, value)))
}

/// Tells which variables llama-server does not get to see.
pub fn warn_of_environment() {
    for (name, value) in own_settings() {
        let value = value.to_string_lossy();
        eprintln!(
            "hypura: warning: {name}={value} is left out: this server decides that itself; see hypura serve --help"
        );
    }
}

/// A port that was free a moment ago.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn random_key() -> Result<String, String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random numbers: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            // The words about where to listen follow and become the script's own arguments.
            arguments: vec!["-c".into(), script.into()],
            environment: Vec::new(),
            shown: Shown::All,
        }
    }

    #[tokio::test]
    async fn an_end_is_noticed_and_its_last_words_are_kept() {
        let child = Child::start(shell("echo '0.0 E srv: broken' >&2; exit 3")).await.unwrap();
        assert_eq!(child.exited().await, "exit status: 3");
        assert!(child.has_exited() && child.id().is_none());
        assert_eq!(child.last_words(), "srv: broken");
    }

    #[tokio::test]
    async fn a_failure_to_load_is_told_by_its_first_error_and_briefly() {
        let script = format!("echo '0.0 E load: bad magic' >&2; echo '0.0 E srv: {}' >&2; exit 1", "x".repeat(2000));
        let child = Child::start(shell(&script)).await.unwrap();
        let problem = child.ready().await.unwrap_err();
        assert!(problem.starts_with("load: bad magic (llama-server ended"), "{problem}");
        let child = Child::start(shell(&format!("echo '0.0 E {}' >&2; exit 1", "é".repeat(2000)))).await.unwrap();
        assert!(child.ready().await.unwrap_err().chars().count() < 400);
    }

    #[tokio::test]
    async fn one_that_is_dropped_ends_with_what_it_started() {
        let child = Child::start(shell("sleep 1000 & wait")).await.unwrap();
        let mut exited = child.exited.clone();
        drop(child);
        assert_eq!(exited.wait_for(Option::is_some).await.unwrap().as_deref(), Some("signal: 9 (SIGKILL)"));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let launch = Launch { program: "/nowhere/llama-server".into(), ..shell("") };
        assert!(Child::start(launch).await.unwrap_err().contains("/nowhere/llama-server"));
    }
}
