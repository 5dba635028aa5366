//! What llama-server generates, piece by piece, from either of its two kinds of answers: chat (parsed by the model's
//! own chat template) and plain completion.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::sse::Events;
use super::tool_calls::ToolCalls;
use crate::serve::errors::{ApiError, ApiResult};

/// A part of an answer, and how probable its tokens were, when that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// What it is.
    pub content: Content,
    /// One object a token; empty unless they were asked for.
    pub logprobs: Vec<Value>,
}

/// What a part of an answer is.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
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
    /// `None` when the whole answer is there.
    events: Option<Events>,
    is_chat: bool,
    tool_calls: ToolCalls,
    pieces: VecDeque<Piece>,
    finish: Option<Finish>,
    is_length: bool,
    top_logprobs: Option<usize>,
}

impl Generation {
    /// An answer of `/v1/chat/completions`.
    pub fn of_chat(events: Events) -> Self {
        Self::new(Some(events), true)
    }

    /// An answer of `/completion` or `/infill`.
    pub fn of_completion(events: Events) -> Self {
        Self::new(Some(events), false)
    }

    /// An answer of `/v1/chat/completions` that came as one object.
    ///
    /// # Errors
    /// When the arguments of a tool's call are no JSON object.
    pub fn of_whole_chat(mut answer: Value) -> ApiResult<Self> {
        let mut generation = Self::new(None, true);
        // What a stream calls the difference is here the message. Its calls are numbered by their place.
        let mut message = answer["choices"][0]["message"].take();
        for (index, call) in message["tool_calls"].as_array_mut().into_iter().flatten().enumerate() {
            call["index"] = json!(index);
        }
        answer["choices"][0]["delta"] = message;
        generation.take_chat(&answer)?;
        Ok(generation)
    }

    /// Reports how probable each token was, with so many others that were probable there.
    pub fn with_logprobs(mut self, top_logprobs: Option<usize>) -> Self {
        self.top_logprobs = top_logprobs;
        self
    }

    fn new(events: Option<Events>, is_chat: bool) -> Self {
        let (tool_calls, pieces) = (ToolCalls::default(), VecDeque::new());
        Self { events, is_chat, tool_calls, pieces, finish: None, is_length: false, top_logprobs: None }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// When llama-server fails or its answer breaks off.
    pub async fn next(&mut self) -> ApiResult<Option<Piece>> {
        loop {
            if let Some(mut piece) = self.pieces.pop_front() {
                shorten(&mut piece.logprobs, self.top_logprobs);
                return Ok(Some(piece));
            }
            let Some(events) = &mut self.events else { return Ok(None) };
            match events.next().await? {
                Some(event) if self.is_chat => self.take_chat(&event)?,
                Some(event) => self.take_completion(&event),
                None => {
                    let is_whole = self.finish.is_some() && (!self.is_chat || events.ended());
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
        let known = self.pieces.len();
        self.push(delta["reasoning_content"].as_str(), Content::Thinking);
        self.push(delta["content"].as_str(), Content::Text);
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let finished = self.tool_calls.add(part)?;
            self.push_call(finished);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.is_length = reason == "length";
            let last = self.tool_calls.finish()?;
            self.push_call(last);
        }
        self.attach(known, &choice["logprobs"]["content"]);
        self.take_timings(event);
        Ok(())
    }

    fn take_completion(&mut self, event: &Value) {
        let known = self.pieces.len();
        self.push(event["content"].as_str(), Content::Text);
        self.attach(known, &event["completion_probabilities"]);
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

    fn push(&mut self, text: Option<&str>, content: fn(String) -> Content) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.pieces.push_back(Piece { content: content(text.to_owned()), logprobs: Vec::new() });
        }
    }

    fn push_call(&mut self, call: Option<Value>) {
        let piece = |call| Piece { content: Content::ToolCall(call), logprobs: Vec::new() };
        self.pieces.extend(call.map(piece));
    }

    /// Gives an event's probabilities to the first piece that it made; where it made none (a tag that is not shown, a
    /// part of a call), they are a piece without text.
    fn attach(&mut self, known: usize, logprobs: &Value) {
        let Some(logprobs) = logprobs.as_array().filter(|tokens| !tokens.is_empty()) else { return };
        let logprobs = logprobs.iter().map(translated).collect();
        match self.pieces.get_mut(known) {
            Some(piece) => piece.logprobs = logprobs,
            None => self.pieces.push_back(Piece { content: Content::Text(String::new()), logprobs }),
        }
    }
}

/// A token's probability in Ollama's form: without the token's number.
fn translated(token: &Value) -> Value {
    let plain = |token: &Value| json!({"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"]});
    let mut object = plain(token);
    object["top_logprobs"] = token["top_logprobs"].as_array().into_iter().flatten().map(plain).collect();
    object
}

/// Leaves as many alternatives as were asked for: llama-server gives at least one.
fn shorten(logprobs: &mut [Value], top_logprobs: Option<usize>) {
    for token in logprobs {
        match (top_logprobs.unwrap_or(0), token.as_object_mut()) {
            (0, Some(token)) => drop(token.remove("top_logprobs")),
            (count, Some(token)) => {
                if let Some(Value::Array(alternatives)) = token.get_mut("top_logprobs") {
                    alternatives.truncate(count);
                }
            }
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_whole_answer_becomes_pieces_with_their_probabilities() {
        let token = |text: &str| {
            json!({"id": 7, "token": text, "logprob": -0.5, "bytes": [97], "top_logprobs": [
            {"id": 7, "token": text, "logprob": -0.5, "bytes": [97]}, {"id": 8, "token": "b", "logprob": -2, "bytes": [98]}]})
        };
        let answer = json!({
            "choices": [{"finish_reason": "tool_calls", "message": {"content": "a", "tool_calls": [
                {"id": "x", "function": {"name": "f", "arguments": "{\"z\":1,\"a\":2}"}}, {"id": "y", "function": {"name": "g"}}]},
                "logprobs": {"content": [token("a")]}}],
            "timings": {"prompt_n": 3, "predicted_n": 1},
        });
        let mut generation = Generation::of_whole_chat(answer.clone()).unwrap().with_logprobs(Some(1));
        let text = generation.next().await.unwrap().unwrap();
        assert_eq!(text.content, Content::Text("a".to_owned()));
        let plain = json!({"token": "a", "logprob": -0.5, "bytes": [97]});
        let mut expected = plain.clone();
        expected["top_logprobs"] = json!([plain]);
        assert_eq!(text.logprobs, [expected]);
        let call = generation.next().await.unwrap().unwrap();
        let Content::ToolCall(call) = call.content else { panic!("{call:?}") };
        assert_eq!(
            call["function"].to_string(),
            r#"{"index":0,"name":"f","arguments":{"z":1,"a":2}}"#,
            "in their order"
        );
        assert!(generation.next().await.unwrap().is_some() && generation.next().await.unwrap().is_none());
        assert_eq!(generation.finish().prompt_tokens, 3);

        let mut without = Generation::of_whole_chat(answer).unwrap().with_logprobs(Some(0));
        assert_eq!(without.next().await.unwrap().unwrap().logprobs, [plain]);
    }
}
