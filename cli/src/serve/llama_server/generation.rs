//! What llama-server generates, piece by piece, from either of its two kinds of answers: chat (parsed by the model's own
//! chat template) and plain completion.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::sse::Events;
use super::tool_calls::ToolCalls;
use crate::serve::errors::{ApiError, ApiResult};

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the answer.
    Text(String),
    /// Text of the reasoning before it.
    Thinking(String),
    /// A whole call of a tool, in Ollama's form.
    ToolCall(Value),
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Finish {
    /// Whether a limit cut it short.
    pub is_length: bool,
    /// Tokens of the prompt, those included that were in the cache.
    pub prompt_tokens: u64,
    /// Milliseconds that reading the prompt took.
    pub prompt_milliseconds: f64,
    /// Tokens generated.
    pub tokens: u64,
    /// Milliseconds that generating took.
    pub milliseconds: f64,
}

/// An answer that is being generated.
pub struct Generation {
    events: Events,
    is_chat: bool,
    tool_calls: ToolCalls,
    pieces: VecDeque<Piece>,
    finish: Option<Finish>,
    is_length: bool,
}

impl Generation {
    /// An answer of `/v1/chat/completions`.
    pub fn of_chat(events: Events) -> Self {
        Self::new(events, true)
    }

    /// An answer of `/completion` or `/infill`.
    pub fn of_completion(events: Events) -> Self {
        Self::new(events, false)
    }

    fn new(events: Events, is_chat: bool) -> Self {
        let (tool_calls, pieces) = (ToolCalls::default(), VecDeque::new());
        Self { events, is_chat, tool_calls, pieces, finish: None, is_length: false }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// When llama-server fails or its answer breaks off.
    pub async fn next(&mut self) -> ApiResult<Option<Piece>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            match self.events.next().await? {
                Some(event) if self.is_chat => self.take_chat(&event)?,
                Some(event) => self.take_completion(&event),
                None => {
                    let is_whole = self.finish.is_some() && (!self.is_chat || self.events.ended());
                    return match is_whole {
                        true => Ok(None),
                        false => Err(ApiError::upstream("llama-server broke off its answer")),
                    };
                }
            }
        }
    }

    /// How it ended, once [`Generation::next`] has returned `None`.
    pub fn finish(&self) -> Finish {
        Finish { is_length: self.is_length, ..self.finish.unwrap_or_default() }
    }

    fn take_chat(&mut self, event: &Value) -> ApiResult<()> {
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        self.push(delta["reasoning_content"].as_str(), Piece::Thinking);
        self.push(delta["content"].as_str(), Piece::Text);
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let finished = self.tool_calls.add(part)?;
            self.pieces.extend(finished.map(Piece::ToolCall));
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.is_length = reason == "length";
            let last = self.tool_calls.finish()?;
            self.pieces.extend(last.map(Piece::ToolCall));
        }
        self.take_timings(event);
        Ok(())
    }

    fn take_completion(&mut self, event: &Value) {
        self.push(event["content"].as_str(), Piece::Text);
        if event["stop"] == json!(true) {
            self.is_length = event["stop_type"] == "limit";
            self.take_timings(event);
        }
    }

    fn take_timings(&mut self, event: &Value) {
        let timings = &event["timings"];
        let Some(prompt_tokens) = timings["prompt_n"].as_u64() else { return };
        let milliseconds = |name: &str| timings[name].as_f64().unwrap_or(0.0);
        self.finish = Some(Finish {
            is_length: false,
            prompt_tokens: prompt_tokens + timings["cache_n"].as_u64().unwrap_or(0),
            prompt_milliseconds: milliseconds("prompt_ms"),
            tokens: timings["predicted_n"].as_u64().unwrap_or(0),
            milliseconds: milliseconds("predicted_ms"),
        });
    }

    fn push(&mut self, text: Option<&str>, piece: fn(String) -> Piece) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.pieces.push_back(piece(text.to_owned()));
        }
    }
}
