//! An answer on its way to a client: as lines of JSON while it is generated, or as one object at the end.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use futures_util::Stream;
use serde_json::{Map, Value, json};

use crate::serve::errors::{ApiResult, json_response};
use crate::serve::llama_server::generation::{Content, Generation, Piece};
use crate::serve::llama_server::loader::Lease;

/// Where the text of an answer goes.
pub enum Shape {
    /// `/api/generate`: `response`, and at the end `context`.
    Generate(ContextRecipe),
    /// `/api/chat`: `message`.
    Chat,
}

/// How to make the `context` of an answer: the tokens of the conversation, which a later request may continue.
pub enum ContextRecipe {
    /// The request asked for none (`raw`).
    None,
    /// The tokens that came before, and those of the prompt's text and of the answer.
    Continue {
        /// The `context` of the request.
        before: Vec<u64>,
        /// The prompt as the model has read it.
        prompt: String,
    },
}

/// An answer that is being generated.
pub struct Answer {
    /// Keeps the model loaded.
    lease: Lease,
    model: String,
    shape: Shape,
    generation: Generation,
    began: Instant,
    text: String,
    thinking: String,
    tool_calls: Vec<Value>,
    logprobs: Vec<Value>,
}

impl Answer {
    /// An answer in the name of the model that the client has asked for. `began` is when the request arrived.
    pub fn new(lease: Lease, model: String, shape: Shape, generation: Generation, began: Instant) -> Self {
        let (text, thinking, tool_calls, logprobs) = (String::new(), String::new(), Vec::new(), Vec::new());
        Self { lease, model, shape, generation, began, text, thinking, tool_calls, logprobs }
    }

    /// The response: a stream of lines, or one object when all is generated.
    ///
    /// # Errors
    /// When generating fails and nothing has been sent. A stream that fails ends with a line that says so.
    pub async fn into_response(mut self, stream: bool) -> ApiResult<Response<Body>> {
        if stream {
            return Ok(ndjson(self.lines()));
        }
        while let Some(piece) = self.generation.next().await? {
            self.keep(&piece);
            self.logprobs.extend(piece.logprobs);
        }
        let mut object = self.closing().await;
        let (text, thinking) = (std::mem::take(&mut self.text), std::mem::take(&mut self.thinking));
        let tool_calls = std::mem::take(&mut self.tool_calls);
        self.put(&mut object, text, thinking, tool_calls);
        put_logprobs(&mut object, std::mem::take(&mut self.logprobs));
        Ok(json_response(StatusCode::OK, &Value::Object(object)))
    }

    fn lines(mut self) -> impl Stream<Item = Value> {
        async_stream::stream! {
            loop {
                match self.generation.next().await {
                    Ok(Some(piece)) => {
                        self.keep(&piece);
                        yield self.line(piece);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        yield error.to_json();
                        return;
                    }
                }
            }
            let mut object = self.closing().await;
            self.put(&mut object, String::new(), String::new(), Vec::new());
            yield Value::Object(object);
        }
    }

    fn keep(&mut self, piece: &Piece) {
        match &piece.content {
            Content::Text(text) => self.text.push_str(text),
            Content::Thinking(text) => self.thinking.push_str(text),
            Content::ToolCall(call) => self.tool_calls.push(call.clone()),
        }
    }

    fn line(&self, piece: Piece) -> Value {
        let mut object = self.head(false);
        match piece.content {
            Content::Text(text) => self.put(&mut object, text, String::new(), Vec::new()),
            Content::Thinking(thinking) => self.put(&mut object, String::new(), thinking, Vec::new()),
            Content::ToolCall(call) => self.put(&mut object, String::new(), String::new(), vec![call]),
        }
        put_logprobs(&mut object, piece.logprobs);
        Value::Object(object)
    }

    fn head(&self, done: bool) -> Map<String, Value> {
        head(&self.model, done)
    }

    fn put(&self, object: &mut Map<String, Value>, text: String, thinking: String, tool_calls: Vec<Value>) {
        let mut fields = Map::new();
        if !thinking.is_empty() {
            fields.insert("thinking".to_owned(), json!(thinking));
        }
        if !tool_calls.is_empty() {
            fields.insert("tool_calls".to_owned(), json!(tool_calls));
        }
        match self.shape {
            Shape::Generate(_) => {
                object.insert("response".to_owned(), json!(text));
                object.append(&mut fields);
            }
            Shape::Chat => {
                fields.insert("role".to_owned(), json!("assistant"));
                fields.insert("content".to_owned(), json!(text));
                object.insert("message".to_owned(), Value::Object(fields));
            }
        }
    }

    /// What the last object says beside the text.
    async fn closing(&self) -> Map<String, Value> {
        let finish = self.generation.finish();
        let mut object = self.head(true);
        let mut set = |name: &str, value: Value| object.insert(name.to_owned(), value);
        set("done_reason", json!(if finish.is_length { "length" } else { "stop" }));
        if let Some(context) = self.context().await {
            set("context", json!(context));
        }
        set("load_duration", nanoseconds(self.lease.load_duration));
        set("prompt_eval_count", json!(finish.prompt_tokens));
        set("prompt_eval_duration", nanoseconds(milliseconds(finish.prompt_milliseconds)));
        set("eval_count", json!(finish.tokens));
        set("eval_duration", nanoseconds(milliseconds(finish.milliseconds)));
        set("total_duration", nanoseconds(self.began.elapsed()));
        object
    }

    async fn context(&self) -> Option<Vec<u64>> {
        let Shape::Generate(ContextRecipe::Continue { before, prompt }) = &self.shape else { return None };
        let content = format!("{prompt}{}", self.text);
        let request = json!({"content": content, "add_special": before.is_empty(), "parse_special": true});
        // A convenience: the answer is whole without it.
        let answer = self.lease.upstream.ask("/tokenize", &request).await.ok()?;
        let tokens = answer["tokens"].as_array()?.iter().filter_map(Value::as_u64);
        Some(before.iter().copied().chain(tokens).collect())
    }
}

fn put_logprobs(object: &mut Map<String, Value>, logprobs: Vec<Value>) {
    if !logprobs.is_empty() {
        object.insert("logprobs".to_owned(), Value::Array(logprobs));
    }
}

/// The fields that every object of an answer has.
pub fn head(model: &str, done: bool) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("model".to_owned(), json!(model));
    object.insert("created_at".to_owned(), json!(jiff::Timestamp::now().to_string()));
    object.insert("done".to_owned(), json!(done));
    object
}

/// A response of one JSON value a line.
fn ndjson(values: impl Stream<Item = Value> + Send + 'static) -> Response<Body> {
    use futures_util::StreamExt;
    let lines = values.map(|value| Ok::<_, Infallible>(Bytes::from(format!("{value}\n"))));
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// A time as Ollama gives it.
pub fn nanoseconds(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

fn milliseconds(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
}
