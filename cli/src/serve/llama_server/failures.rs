//! Why llama-server could not compute. It tells its clients no more than "Compute error."; its log has the reason, in
//! libhypura's words, which reach us through another pipe, perhaps a moment later.

use std::time::Duration;

use axum::body::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::log_lines::message_of;
use crate::serve::errors::ApiError;

/// What llama-server answers, whatever the reason.
const WITHOUT_REASON: &str = "Compute error.";

/// How libhypura's line about a failed computation begins.
const LINE_START: &str = "hypura: cannot compute ";

/// How long a line of the log may take to get here: a busy machine's threads may have to wait for each other.
const PATIENCE: Duration = Duration::from_secs(5);

/// The latest failure, and how many there have been.
#[derive(Clone, Debug, Default)]
struct Latest {
    count: u64,
    reason: String,
}

/// Who reads the log tells it here.
#[derive(Debug, Default)]
pub struct Reporter(watch::Sender<Latest>);

impl Reporter {
    /// Takes a line of the log; most tell of no failure.
    pub fn read(&self, line: &str) {
        let Some(rest) = message_of(line).strip_prefix(LINE_START) else { return };
        // The tensor's name comes first, which means little to most; names hold no such pair of characters.
        let reason = rest.split_once(": ").map_or(rest, |(_, reason)| reason).to_owned();
        self.0.send_modify(|latest| {
            latest.count += 1;
            latest.reason = reason;
        });
    }

    /// What requests look into.
    pub fn failures(&self) -> Failures {
        Failures(self.0.subscribe())
    }
}

/// The failures of one llama-server.
#[derive(Clone, Debug)]
pub struct Failures(watch::Receiver<Latest>);

/// A moment; failures after it are those of a request that began then.
#[derive(Clone, Copy, Debug)]
pub struct Moment(u64);

impl Failures {
    /// Now.
    pub fn now(&self) -> Moment {
        Moment(self.0.borrow().count)
    }

    /// Whether anything has failed so far.
    pub fn any(&self) -> bool {
        self.0.borrow().count > 0
    }

    /// The error with its reason, when it is one of computing.
    pub async fn explain(&self, began: Moment, mut error: ApiError) -> ApiError {
        if error.message == WITHOUT_REASON {
            error.message = self.reason(began).await;
        }
        error
    }

    /// The same for an error as llama-server sends it: an object with a code, or one around that.
    pub async fn explain_json(&self, began: Moment, body: &mut Value) {
        let error = if body["error"].is_object() { &mut body["error"] } else { body };
        if error["message"] == WITHOUT_REASON && error["code"].is_number() {
            error["message"] = Value::String(self.reason(began).await);
        }
    }

    /// The same for whole lines of a stream of events. What is no such error is left as it is, to the byte.
    pub async fn explain_lines(&self, began: Moment, lines: Bytes) -> Bytes {
        let has_reason =
            |line: &[u8]| !line.windows(WITHOUT_REASON.len()).any(|part| part == WITHOUT_REASON.as_bytes());
        if has_reason(&lines) {
            return lines;
        }
        let mut explained = Vec::new();
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            let data = line.strip_prefix(b"data: ").filter(|_| !has_reason(line));
            match data.and_then(|data| serde_json::from_slice::<Value>(data).ok()) {
                Some(mut event) => {
                    self.explain_json(began, &mut event).await;
                    explained.extend_from_slice(format!("data: {event}\n").as_bytes());
                }
                None => explained.extend_from_slice(line),
            }
        }
        explained.into()
    }

    async fn reason(&self, began: Moment) -> String {
        let mut latest = self.0.clone();
        let told = tokio::time::timeout(PATIENCE, latest.wait_for(|latest| latest.count > began.0)).await;
        match told {
            Ok(Ok(latest)) => format!("cannot compute: {}", latest.reason),
            _ => "cannot compute: llama-server did not say why; --verbose shows its log".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> ApiError {
        ApiError::upstream(WITHOUT_REASON)
    }

    #[tokio::test]
    async fn a_failure_is_told_by_the_log_even_if_that_is_late() {
        let reporter = Reporter::default();
        let failures = reporter.failures();
        let began = failures.now();
        let late = tokio::spawn({
            let failures = failures.clone();
            async move { failures.explain(began, error()).await.message }
        });
        tokio::task::yield_now().await;
        reporter.read("0.01.000.000 E srv: other");
        reporter.read("0.01.000.000 E hypura: cannot compute ffn_moe_up-3: /m.gguf: offset 5: Input/output error");
        assert_eq!(late.await.unwrap(), "cannot compute: /m.gguf: offset 5: Input/output error");
        assert!(failures.any());
    }

    #[tokio::test]
    async fn what_failed_before_is_no_reason_and_other_errors_stay() {
        let reporter = Reporter::default();
        reporter.read("hypura: cannot compute a: old");
        let failures = reporter.failures();
        drop(reporter); // the log has ended: nothing is waited for
        let unexplained = failures.explain(failures.now(), error()).await.message;
        assert!(unexplained.contains("did not say why"), "{unexplained}");
        let other = failures.explain(failures.now(), ApiError::upstream("too long")).await;
        assert_eq!(other.message, "too long");
    }

    #[tokio::test]
    async fn of_a_stream_only_its_errors_are_explained() {
        let reporter = Reporter::default();
        let failures = reporter.failures();
        let began = failures.now();
        reporter.read("hypura: cannot compute a: no drive");
        let text = "data: {\"content\":\"Compute error.\", \"x\" : 1}\n\n";
        for failed in
            [r#"{"code":500,"message":"Compute error."}"#, r#"{"error":{"code":500,"message":"Compute error."}}"#]
        {
            let lines = format!("event: error\ndata: {failed}\n\n");
            let explained = failures.explain_lines(began, lines.clone().into()).await;
            assert_eq!(explained, lines.replace("Compute error.", "cannot compute: no drive"));
        }
        let unchanged = failures.explain_lines(began, "data: [DONE]\nCompute error.\n".into()).await;
        assert_eq!(unchanged, "data: [DONE]\nCompute error.\n");
        let said = failures.explain_lines(began, text.into()).await;
        let said: Value = serde_json::from_slice(said.strip_prefix(b"data: ").unwrap().trim_ascii()).unwrap();
        assert_eq!(said["content"], "Compute error.", "what a model says is its own");
    }
}
