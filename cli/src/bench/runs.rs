//! One run: a llama-server, a prompt, and how fast tokens come after it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use hypura::stats::Statistics;

use super::kind::Kind;
use super::memory_limit::MemoryLimit;
use crate::process::crash_hint;
use crate::rates::Snapshot;
use crate::scratch::Scratch;
use crate::serve::llama_server::child::{Child, Launch, Shown};
use crate::serve::llama_server::upstream::Upstream;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The model's first file.
    pub model: PathBuf,
    /// llama-server.
    pub program: PathBuf,
    /// Tokens to generate.
    pub tokens: u32,
    /// What loading and answering may take.
    pub patience: Duration,
    /// Whether to stream even when the model fits.
    pub stream: bool,
    /// More arguments for llama-server.
    pub more: Vec<String>,
}

/// What came of it. Figures are of the time in which tokens were generated.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Ids of the tokens, in order.
    pub tokens: Vec<u64>,
    /// Tokens per second; `None` when too few came.
    pub tokens_per_second: Option<f64>,
    /// Seconds until the first token, from a cold start.
    pub first_seconds: Option<f64>,
    /// Per token, as libhypura has counted; `None` when nothing was streamed.
    pub streaming: Option<Streaming>,
    /// The drive's bytes per second, measured before and after; `None` when it was not.
    pub drive_bytes_per_second: Option<f64>,
    /// Why there are no figures.
    pub failure: Option<String>,
}

/// What streaming took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streaming {
    /// Bytes read for a token.
    pub read_bytes_per_token: f64,
    /// Seconds that a token waited.
    pub stall_seconds_per_token: f64,
    /// Bytes per second while reading.
    pub reached_bytes_per_second: Option<f64>,
    /// The share of experts that were in RAM.
    pub hits: Option<f64>,
    /// Memory for streamed weights.
    pub budget_bytes: u64,
}

impl Streaming {
    fn between(before: &Snapshot, after: &Snapshot) -> Option<Self> {
        let growth = |counter: fn(&Statistics) -> f64| after.growth(counter, before);
        let tokens = growth(|of| of.tokens as f64);
        if tokens <= 0.0 {
            return None;
        }
        let (seconds, uses) =
            (growth(|of| of.read_seconds), growth(|of| of.expert_hits as f64) + growth(|of| of.expert_misses as f64));
        Some(Self {
            read_bytes_per_token: growth(|of| of.read_bytes as f64) / tokens,
            stall_seconds_per_token: growth(|of| of.stall_seconds) / tokens,
            reached_bytes_per_second: (seconds > 0.0).then(|| growth(|of| of.read_bytes as f64) / seconds),
            hits: (uses > 0.0).then(|| growth(|of| of.expert_hits as f64) / uses),
            budget_bytes: after.statistics.budget_bytes,
        })
    }

    fn to_json(self) -> Value {
        json!({
            "read_bytes_per_token": self.read_bytes_per_token,
            "stall_seconds_per_token": self.stall_seconds_per_token,
            "reached_bytes_per_second": self.reached_bytes_per_second,
            "hit_rate": self.hits,
            "budget_bytes": self.budget_bytes,
        })
    }
}

impl Run {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "tokens_per_second": self.tokens_per_second,
            "first_token_seconds": self.first_seconds,
            "tokens": self.tokens.len(),
            "streaming": self.streaming.map(Streaming::to_json),
            "drive_bytes_per_second": self.drive_bytes_per_second,
            "failure": self.failure,
        })
    }
}

/// A text that any model can go on with.
const PROMPT: &str = "The lighthouse keeper wrote in his book every evening, and what he wrote that night was this:";

/// The context: the prompt and the longest answer fit.
const CONTEXT_TOKENS: u32 = 4096;

/// Tokens that can be asked for.
pub const TOKENS_MAX: u32 = CONTEXT_TOKENS - 256;

/// Runs once. Whatever goes wrong is in the result.
pub async fn run(subject: &Subject, kind: Kind, limit: Option<&MemoryLimit>) -> Run {
    let mut run = Run::default();
    if let Err(problem) = attempt(subject, kind, limit, &mut run).await {
        run.failure = Some(problem);
    }
    run
}

async fn attempt(subject: &Subject, kind: Kind, limit: Option<&MemoryLimit>, run: &mut Run) -> Result<(), String> {
    let scratch = Scratch::make("bench")?;
    let stats = scratch.path().join("stats.json");
    let deadline = Instant::now() + subject.patience;
    let too_slow = || format!("no answer within {} s", subject.patience.as_secs());
    let child = Child::start(launch(subject, kind, limit, &stats)).await?;
    let done = async {
        timeout_at(deadline, child.ready()).await.map_err(|_| too_slow())??;
        let upstream = child.upstream();
        let mut first = Answer::default();
        first.take(&upstream, 1, deadline).await?;
        run.first_seconds = first.seconds;
        first.seconds.ok_or_else(too_slow)?;
        let before = settled(&stats).await;
        let mut answer = Answer::default();
        answer.take(&upstream, subject.tokens, deadline).await?;
        run.tokens_per_second = answer.speed();
        run.tokens = answer.tokens;
        let after = settled(&stats).await;
        run.streaming = before.zip(after).and_then(|(before, after)| Streaming::between(&before, &after));
        if run.tokens_per_second.is_none() { Err(too_slow()) } else { Ok(()) }
    }
    .await;
    // A program that is gone is why its connection broke.
    let done = match done {
        Err(_) if child.has_exited() => {
            let status = child.exited().await;
            Err(format!("llama-server ended with {status}{}", crash_hint(&status)))
        }
        done => done,
    };
    child.stop().await;
    done
}

fn launch(subject: &Subject, kind: Kind, limit: Option<&MemoryLimit>, stats: &Path) -> Launch {
    let (program, mut arguments) = match limit {
        Some(limit) => {
            let (shell, mut words) = limit.command();
            words.push(subject.program.to_string_lossy().into_owned());
            (shell, words)
        }
        None => (subject.program.clone(), Vec::new()),
    };
    let mut push = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    push(&["--model", &subject.model.to_string_lossy(), "--ctx-size", &CONTEXT_TOKENS.to_string(), "--parallel", "1"]);
    // Repacked weights would be copied into memory, which is the opposite of mmap, and would be summed up in another order.
    push(&["--no-repack", "--no-ui", "--cache-ram", "0"]);
    if kind == Kind::Mmap {
        push(&["--no-warmup"]);
    }
    arguments.extend(subject.more.iter().cloned());
    let mode = match kind {
        Kind::Streamed if subject.stream => "stream",
        Kind::Streamed => "auto",
        Kind::Mmap | Kind::Resident => "off",
    };
    let environment =
        vec![("HYPURA".to_owned(), mode.to_owned()), ("HYPURA_STATS".to_owned(), stats.to_string_lossy().into_owned())];
    Launch { program, arguments, environment, shown: Shown::Nothing }
}

/// Tokens and when they came.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<u64>,
    /// From the request to the first token.
    seconds: Option<f64>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Answer {
    /// Asks for the greedy continuation; ends early when the time is up.
    async fn take(&mut self, upstream: &Upstream, count: u32, deadline: Instant) -> Result<(), String> {
        let request = json!({
            "prompt": PROMPT, "n_predict": count, "temperature": 0, "seed": 1, "ignore_eos": true, "cache_prompt": true,
            "stream": true, "return_tokens": true,
        });
        let began = Instant::now();
        let Ok(events) = timeout_at(deadline, upstream.events("/completion", &request)).await else { return Ok(()) };
        let mut events = events.map_err(|error| error.message)?;
        while let Ok(event) = timeout_at(deadline, events.next()).await {
            let Some(event) = event.map_err(|error| error.message)? else { break };
            let tokens: Vec<u64> = event["tokens"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            if !tokens.is_empty() && event["stop"] != json!(true) {
                let now = Instant::now();
                self.tokens.extend(tokens);
                self.last = Some(now);
                self.first.get_or_insert(now);
                self.seconds.get_or_insert((now - began).as_secs_f64());
            }
        }
        Ok(())
    }

    /// Tokens per second after the first, whose time is the prompt's.
    fn speed(&self) -> Option<f64> {
        let seconds = (self.last? - self.first?).as_secs_f64();
        (seconds > 0.0).then(|| (self.tokens.len() - 1) as f64 / seconds)
    }
}

/// A snapshot that was taken after everything asked for so far; `None` when nothing is streamed.
async fn settled(stats: &Path) -> Option<Snapshot> {
    // Reads ahead that a request leaves behind end sooner; a snapshot comes every two seconds.
    const REST: Duration = Duration::from_millis(500);
    const PATIENCE: Duration = Duration::from_secs(20);
    let asked = SystemTime::now() + REST;
    let end = Instant::now() + PATIENCE;
    while stats.exists() && Instant::now() < end {
        match Snapshot::read(stats) {
            Some(snapshot) if snapshot.at >= asked => return Some(snapshot),
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_growth_per_token() {
        let snapshot = |statistics: serde_json::Value| Snapshot {
            at: SystemTime::now(),
            statistics: serde_json::from_value(statistics).unwrap(),
        };
        let before =
            snapshot(json!({"tokens": 10, "read_bytes": 100, "read_seconds": 1, "stall_seconds": 1, "expert_hits": 5}));
        let after = snapshot(json!({
            "tokens": 20, "read_bytes": 1100, "read_seconds": 3, "stall_seconds": 2, "expert_hits": 8, "expert_misses": 1,
            "budget_bytes": 7,
        }));
        let expected = Streaming {
            read_bytes_per_token: 100.0,
            stall_seconds_per_token: 0.1,
            reached_bytes_per_second: Some(500.0),
            hits: Some(0.75),
            budget_bytes: 7,
        };
        assert_eq!(Streaming::between(&before, &after), Some(expected));
        assert_eq!(Streaming::between(&after, &after), None);
    }

    #[test]
    fn the_first_token_is_the_prompts() {
        let first = Instant::now();
        let answer =
            |count, last| Answer { tokens: vec![0; count], seconds: None, first: Some(first), last: Some(last) };
        assert_eq!(answer(5, first + Duration::from_secs(2)).speed(), Some(2.0));
        assert_eq!(answer(1, first).speed(), None);
        assert_eq!(Answer::default().speed(), None);
    }

    #[test]
    fn every_kind_gets_its_settings() {
        let subject = Subject {
            model: "m.gguf".into(),
            program: "/bin/llama-server".into(),
            tokens: 1,
            patience: Duration::ZERO,
            stream: false,
            more: vec!["-t".into(), "3".into()],
        };
        let mode = |subject: &Subject, kind| launch(subject, kind, None, Path::new("s")).environment[0].1.clone();
        let modes = [Kind::Mmap, Kind::Streamed, Kind::Resident].map(|kind| mode(&subject, kind));
        assert_eq!(modes, ["off", "auto", "off"]);
        assert_eq!(mode(&Subject { stream: true, ..subject.clone() }, Kind::Streamed), "stream");
        let arguments = launch(&subject, Kind::Streamed, None, Path::new("s")).arguments;
        assert!(arguments.ends_with(&["-t".to_owned(), "3".to_owned()]));
    }
}
