//! `POST /api/chat`.

use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Shape, head};
use super::capabilities::{Think, require_thinking, require_tools};
use super::messages::{self, Message};
use super::options::response_schema;
use crate::serve::errors::{ApiError, ApiResult, json_response};
use crate::serve::http::request::{self, Choice};
use crate::serve::keep_alive::KeepAlive;
use crate::serve::llama_server::generation::Generation;
use crate::serve::llama_server::loader::Lease;
use crate::serve::server::Server;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    #[serde(flatten)]
    choice: Choice,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    format: Option<Value>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    think: Option<Think>,
    /// Whether the oldest messages may be left out when a conversation is too long.
    #[serde(default)]
    truncate: Option<bool>,
}

/// Answers a conversation; without messages, loads or unloads the model.
pub async fn chat(State(server): State<Server>, body: Body) -> ApiResult<Response<Body>> {
    let began = Instant::now();
    let request: ChatRequest = request::read(body, server.body_bytes_max).await?;
    let model = server.catalog.find(&request.choice.model)?;
    let options = request.choice.options()?;
    if request.messages.is_empty() {
        let reason = server.load_or_unload(&model, &request.choice, options.context_tokens).await?;
        let mut object = head(&request.choice.model, true);
        object.insert("done_reason".to_owned(), json!(reason));
        object.insert("message".to_owned(), json!({"role": "assistant", "content": ""}));
        return Ok(json_response(StatusCode::OK, &Value::Object(object)));
    }
    let mut messages = messages::translate(&request.messages)?;
    let schema = response_schema(request.format.as_ref())?;
    let lease = server.loader.acquire(&model, options.context_tokens, request.choice.keep_alive).await?;
    let mut fields = chat_fields(&lease, options.sampling, schema, request.think.as_ref())?;
    if let Some(tools) = request.tools.filter(|tools| !tools.is_empty()) {
        require_tools(&lease)?;
        fields.insert("tools".to_owned(), json!(tools));
        fields.insert("parallel_tool_calls".to_owned(), json!(true));
    }
    let generation = loop {
        fields.insert("messages".to_owned(), json!(messages));
        match lease.upstream.events("/v1/chat/completions", &Value::Object(fields.clone())).await {
            Ok(events) => break Generation::of_chat(events),
            Err(error) if error.context_exceeded && request.truncate != Some(false) => {
                if !messages::drop_oldest(&mut messages) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    };
    let answer = Answer::new(lease, request.choice.model, Shape::Chat, generation, began);
    answer.into_response(request.stream.unwrap_or(true)).await
}

/// The fields of a request to llama-server's chat endpoint, without messages.
///
/// # Errors
/// 400 when the model cannot think and is asked to.
pub fn chat_fields(
    lease: &Lease,
    sampling: Map<String, Value>,
    schema: Option<Value>,
    think: Option<&Think>,
) -> ApiResult<Map<String, Value>> {
    let mut fields = sampling;
    fields.insert("stream".to_owned(), json!(true));
    fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
    if let Some(schema) = schema {
        fields.insert("response_format".to_owned(), json!({"type": "json_schema", "json_schema": {"schema": schema}}));
    }
    if let Some(think) = think {
        require_thinking(lease, think)?;
        fields.insert("chat_template_kwargs".to_owned(), think.template_arguments());
    }
    Ok(fields)
}

impl Server {
    /// What a request without a prompt is for: loading the model, or unloading it (`keep_alive` 0). Says which.
    pub async fn load_or_unload(
        &self,
        model: &std::sync::Arc<crate::serve::catalog::Model>,
        choice: &Choice,
        context_tokens: Option<u32>,
    ) -> Result<&'static str, ApiError> {
        if choice.keep_alive == Some(KeepAlive::For(std::time::Duration::ZERO)) {
            self.loader.unload(model).await;
            return Ok("unload");
        }
        self.loader.acquire(model, context_tokens, choice.keep_alive).await?;
        Ok("load")
    }
}
