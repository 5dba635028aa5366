//! Server-sent events, as llama-server streams its answers: lines `data: {...}`, at the end `data: [DONE]`.

use axum::body::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::Value;

use super::failures::{Failures, Moment};
use super::upstream::UpstreamBody;
use crate::serve::errors::{ApiError, ApiResult};

/// The events of one answer.
pub struct Events {
    body: UpstreamBody,
    lines: Lines,
    ended: bool,
    failures: Failures,
    began: Moment,
}

impl Events {
    /// Reads the body of an answer to a request that began at a moment.
    pub fn new(body: UpstreamBody, failures: Failures, began: Moment) -> Self {
        Self { body, lines: Lines::default(), ended: false, failures, began }
    }

    /// The next event, or `None` at the end. An answer that breaks off is an error: half an answer must not look whole.
    ///
    /// # Errors
    /// When the connection breaks, and what llama-server reports in place of an event.
    pub async fn next(&mut self) -> ApiResult<Option<Value>> {
        loop {
            while let Some(line) = self.lines.take() {
                match parse(&line) {
                    Ok(Line::Event(event)) => return Ok(Some(event)),
                    Ok(Line::Done) => self.ended = true,
                    Ok(Line::Other) => {}
                    Err(error) => return Err(self.failures.explain(self.began, error).await),
                }
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.lines.add(&bytes),
                Some(Err(error)) => {
                    return Err(ApiError::upstream(format!("llama-server broke off its answer: {error}")));
                }
                None => return Ok(None),
            }
        }
    }

    /// Whether the mark of the end has been seen. Only OpenAI's endpoints send one.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// The events of an answer as they come, in whole lines, with the reason where computing has failed.
pub fn explained(
    mut body: UpstreamBody,
    failures: Failures,
    began: Moment,
) -> impl Stream<Item = Result<Bytes, hyper::Error>> {
    async_stream::stream! {
        let mut line = Vec::new();
        while let Some(bytes) = body.next().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            line.extend_from_slice(&bytes);
            if let Some(end) = line.iter().rposition(|&byte| byte == b'\n') {
                let rest = line.split_off(end + 1);
                let lines = std::mem::replace(&mut line, rest);
                yield Ok(failures.explain_lines(began, lines.into()).await);
            }
        }
        yield Ok(failures.explain_lines(began, line.into()).await);
    }
}

enum Line {
    Event(Value),
    Done,
    /// A comment that keeps the connection alive, or the empty line between events.
    Other,
}

fn parse(line: &[u8]) -> ApiResult<Line> {
    let Some((name, data)) = line.iter().position(|&byte| byte == b':').map(|colon| line.split_at(colon)) else {
        return Ok(Line::Other);
    };
    let data = data[1..].trim_ascii();
    if data == b"[DONE]" {
        return Ok(Line::Done);
    }
    if !matches!(name, b"data" | b"error") {
        return Ok(Line::Other);
    }
    let event: Value = serde_json::from_slice(data)
        .map_err(|error| ApiError::upstream(format!("llama-server sent an event that is no JSON: {error}")))?;
    if name == b"error" || event.get("error").is_some() {
        let body = if event.get("error").is_some() { event } else { serde_json::json!({ "error": event }) };
        let status = body["error"]["code"].as_u64().and_then(|code| u16::try_from(code).ok());
        let status = status.and_then(|code| axum::http::StatusCode::from_u16(code).ok()).unwrap_or_default();
        return Err(ApiError::from_upstream(status, &body));
    }
    Ok(Line::Event(event))
}

/// Cuts bytes into lines, wherever the network has cut them before. Lines are decoded whole, so that no character is
/// torn.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.iter().position(|&byte| byte == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Some(line.trim_ascii_end().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let text = "data: {\"content\":\"é🎈\"}\r\n\ndata: [DONE]\n";
        for size in 1..text.len() {
            let (mut lines, mut taken) = (Lines::default(), Vec::new());
            for bytes in text.as_bytes().chunks(size) {
                lines.add(bytes);
                while let Some(line) = lines.take() {
                    taken.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(taken, ["data: {\"content\":\"é🎈\"}", "", "data: [DONE]"], "in pieces of {size}");
        }
    }

    #[test]
    fn kinds_of_lines() {
        assert!(matches!(parse(b"data: {\"a\":1}"), Ok(Line::Event(event)) if event["a"] == 1));
        assert!(matches!(parse(b"data: [DONE]"), Ok(Line::Done)));
        for other in [&b""[..], b": ping", b"event: x", b"id"] {
            assert!(matches!(parse(other), Ok(Line::Other)));
        }
        assert!(parse(b"data: {").is_err());
        for failure in [
            &br#"data: {"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":12,"n_ctx":10}}"#[..],
            br#"error: {"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":12,"n_ctx":10}"#,
        ] {
            let Err(error) = parse(failure) else { panic!("an error must not pass for an event") };
            assert!(error.message == "too long" && error.status == 400 && error.context_exceeded == Some(2), "{error:?}");
        }
    }
}
