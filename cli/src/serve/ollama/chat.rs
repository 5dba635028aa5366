//! `POST /api/chat`.

use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Shape, head};
use super::capabilities::{Think, require_senses, require_thinking, require_tools, template_of};
use super::choice::Choice;
use super::messages::{self, Message};
use super::options::response_schema;
use super::shorten;
use crate::serve::errors::{ApiError, ApiResult, json_response};
use crate::serve::http::request;
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
    let messages = messages::translate(&request.messages)?;
    require_senses(&model, messages::images_of(&request.messages))?;
    let top_logprobs = request.choice.top_logprobs()?;
    let schema = response_schema(request.format.as_ref())?;
    let lease = server.loader.acquire(&model, options.context_tokens, request.choice.keep_alive).await?;
    let mut fields = chat_fields(&lease, options.sampling, schema, request.think.as_ref())?;
    request_logprobs(&mut fields, top_logprobs);
    if let Some(tools) = request.tools.filter(|tools| !tools.is_empty()) {
        require_tools(&lease)?;
        fields.insert("tools".to_owned(), json!(tools));
        fields.insert("parallel_tool_calls".to_owned(), json!(true));
    }
    let (generation, _) = converse(&lease, fields, messages, &request.choice).await?;
    let generation = generation.with_logprobs(top_logprobs);
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
        fields.insert("chat_template_kwargs".to_owned(), think.template_arguments(template_of(lease)));
    }
    Ok(fields)
}

/// Asks for the probabilities of tokens. llama-server gives none beside less than one alternative, and none in a stream
/// with tools: then the answer comes as a whole.
pub fn request_logprobs(fields: &mut Map<String, Value>, top_logprobs: Option<usize>) {
    if let Some(count) = top_logprobs {
        fields.insert("logprobs".to_owned(), json!(true));
        fields.insert("top_logprobs".to_owned(), json!(count.max(1)));
    }
}

/// Has a conversation continued, shortened until it fits where the request allows that. Returns the messages that it
/// was shortened to as well.
///
/// # Errors
/// What llama-server refuses.
pub async fn converse(
    lease: &Lease,
    mut fields: Map<String, Value>,
    mut messages: Vec<Value>,
    choice: &Choice,
) -> ApiResult<(Generation, Vec<Value>)> {
    const PATH: &str = "/v1/chat/completions";
    let is_whole = fields.contains_key("tools") && fields.contains_key("logprobs");
    if is_whole {
        fields.insert("stream".to_owned(), json!(false));
        fields.remove("stream_options");
    }
    loop {
        fields.insert("messages".to_owned(), json!(messages));
        if !choice.shifts() {
            let rendered = lease.upstream.ask("/apply-template", &Value::Object(fields.clone())).await?;
            let tokens = shorten::tokens_of(lease, rendered["prompt"].as_str().unwrap_or_default(), true).await?;
            shorten::limit_to_room(lease, &mut fields, tokens.len());
        }
        let body = Value::Object(fields.clone());
        let generation = match is_whole {
            true => lease.upstream.ask(PATH, &body).await.and_then(Generation::of_whole_chat),
            false => lease.upstream.events(PATH, &body).await.map(Generation::of_chat),
        };
        match generation {
            Ok(generation) => return Ok((generation, messages)),
            Err(error) => match error.context_exceeded {
                Some(excess) if choice.truncates() && shorten::conversation(lease, &mut messages, excess).await? => {}
                _ => return Err(error),
            },
        }
    }
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
