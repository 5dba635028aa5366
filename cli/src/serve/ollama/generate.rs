//! `POST /api/generate`.
//!
//! A prompt goes through the model's chat template, as a conversation of one message, unless it is raw, comes with a
//! template of its own, or continues an earlier `context`: then it is completed as text.

use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, ContextRecipe, Shape, head};
use super::capabilities::{Think, lacks, require_senses, template_of};
use super::chat::{chat_fields, converse, request_logprobs};
use super::choice::Choice;
use super::options::response_schema;
use super::{images, prompt_template, shorten};
use crate::serve::errors::{ApiError, ApiResult, json_response};
use crate::serve::http::request;
use crate::serve::llama_server::generation::Generation;
use crate::serve::llama_server::loader::Lease;
use crate::serve::server::Server;

#[derive(Debug, Deserialize)]
struct GenerateRequest {
    #[serde(flatten)]
    choice: Choice,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    template: Option<String>,
    #[serde(default)]
    context: Option<Vec<u64>>,
    #[serde(default)]
    raw: Option<bool>,
    #[serde(default)]
    images: Option<Vec<Value>>,
    #[serde(default)]
    format: Option<Value>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    think: Option<Think>,
}

/// Completes a prompt; without one, loads or unloads the model.
pub async fn generate(State(server): State<Server>, body: Body) -> ApiResult<Response<Body>> {
    let began = Instant::now();
    let request: GenerateRequest = request::read(body, server.body_bytes_max).await?;
    let model = server.catalog.find(&request.choice.model)?;
    let images = request.images.as_deref().unwrap_or_default();
    require_senses(&model, images)?;
    let options = request.choice.options()?;
    let top_logprobs = request.choice.top_logprobs()?;
    let schema = response_schema(request.format.as_ref())?;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let prompt = given(&request.prompt).unwrap_or_default();
    if prompt.is_empty() && given(&request.suffix).is_none() {
        let reason = server.load_or_unload(&model, &request.choice, options.context_tokens).await?;
        let mut object = head(&request.choice.model, true);
        object.insert("done_reason".to_owned(), json!(reason));
        object.insert("response".to_owned(), json!(""));
        return Ok(json_response(StatusCode::OK, &Value::Object(object)));
    }
    let (system, template) = (given(&request.system), given(&request.template));
    let is_raw = request.raw == Some(true);
    if is_raw && (system.is_some() || template.is_some() || request.context.is_some()) {
        return Err(ApiError::bad_request("raw mode does not support template, system, or context"));
    }
    if !images.is_empty() && (request.suffix.is_some() || request.context.is_some()) {
        return Err(ApiError::bad_request("images go neither with suffix nor with context: /api/chat continues them"));
    }
    let lease = server.loader.acquire(&model, options.context_tokens, request.choice.keep_alive).await?;
    let completion =
        Completion { lease: &lease, choice: &request.choice, sampling: options.sampling, schema, top_logprobs };
    let (generation, recipe) = if let Some(suffix) = given(&request.suffix) {
        (completion.fill_in(&prompt, &suffix).await?, ContextRecipe::None)
    } else if is_raw {
        (completion.complete(completion.text(&[], &prompt, images)?).await?, ContextRecipe::None)
    } else {
        let before = request.context.unwrap_or_default();
        let mut messages = Vec::new();
        messages.extend(system.as_ref().map(|system| json!({"role": "system", "content": system})));
        messages.push(json!({"role": "user", "content": images::content(&prompt, Some(images))?}));
        let think = request.think.as_ref();
        if template.is_none() && before.is_empty() {
            let (generation, messages) = completion.chat(messages, think).await?;
            let rendered = completion.render(&messages, think).await?;
            (generation, ContextRecipe::Continue { before, prompt: rendered })
        } else {
            let rendered = match &template {
                Some(template) => prompt_template::render(template, system.as_deref().unwrap_or_default(), &prompt)?,
                None => completion.render(&messages, think).await?,
            };
            let generation = completion.complete(completion.text(&before, &rendered, images)?).await?;
            (generation, ContextRecipe::Continue { before, prompt: rendered })
        }
    };
    let generation = generation.with_logprobs(top_logprobs);
    let answer = Answer::new(lease, request.choice.model, Shape::Generate(recipe), generation, began);
    answer.into_response(request.stream.unwrap_or(true)).await
}

/// The ways to have a text completed.
struct Completion<'a> {
    lease: &'a Lease,
    choice: &'a Choice,
    sampling: Map<String, Value>,
    schema: Option<Value>,
    top_logprobs: Option<usize>,
}

impl Completion<'_> {
    /// A conversation, through the model's chat template; and the messages that it was shortened to.
    async fn chat(&self, messages: Vec<Value>, think: Option<&Think>) -> ApiResult<(Generation, Vec<Value>)> {
        let mut fields = chat_fields(self.lease, self.sampling.clone(), self.schema.clone(), think)?;
        request_logprobs(&mut fields, self.top_logprobs);
        converse(self.lease, fields, messages, self.choice).await
    }

    /// A prompt in the form that llama-server takes: tokens and the text after them, or a text with pictures.
    fn text(&self, before: &[u64], text: &str, images: &[Value]) -> ApiResult<Value> {
        let marker = self.lease.properties["media_marker"].as_str().unwrap_or_default();
        match before {
            _ if !images.is_empty() => images::prompt(text, images, marker),
            [] => Ok(json!(text)),
            _ => Ok(before.iter().map(|token| json!(token)).chain([json!(text)]).collect()),
        }
    }

    /// The text that a conversation becomes in the model's chat template, without its pictures.
    async fn render(&self, messages: &[Value], think: Option<&Think>) -> ApiResult<String> {
        let mut messages = messages.to_vec();
        for message in &mut messages {
            message["content"] = json!(images::text_of(&message["content"]));
        }
        let mut request = json!({ "messages": messages });
        if let Some(think) = think {
            request["chat_template_kwargs"] = think.template_arguments(template_of(self.lease));
        }
        let answer = self.lease.upstream.ask("/apply-template", &request).await?;
        Ok(answer["prompt"].as_str().unwrap_or_default().to_owned())
    }

    /// A text, or tokens and a text, as they are.
    async fn complete(&self, prompt: Value) -> ApiResult<Generation> {
        let mut fields = self.completion_fields();
        if !self.choice.shifts() {
            let before = prompt.as_array().map_or(0, |parts| parts.iter().filter(|part| part.is_u64()).count());
            let text = prompt.as_str().or_else(|| prompt.as_array()?.last()?.as_str()).unwrap_or_default();
            let tokens = shorten::tokens_of(self.lease, text, before == 0).await?;
            shorten::limit_to_room(self.lease, &mut fields, before + tokens.len());
        }
        fields.insert("prompt".to_owned(), prompt);
        let events = match self.lease.upstream.events("/completion", &Value::Object(fields.clone())).await {
            Err(ApiError { context_exceeded: Some(excess), .. }) if self.choice.truncates() => {
                let keep = fields["n_keep"].as_u64().unwrap_or(0);
                fields["prompt"] = shorten::prompt(self.lease, &fields["prompt"], keep, excess).await?;
                self.lease.upstream.events("/completion", &Value::Object(fields)).await?
            }
            other => other?,
        };
        Ok(Generation::of_completion(events))
    }

    /// What belongs between two texts.
    async fn fill_in(&self, prefix: &str, suffix: &str) -> ApiResult<Generation> {
        let mut fields = self.completion_fields();
        fields.insert("input_prefix".to_owned(), json!(prefix));
        fields.insert("input_suffix".to_owned(), json!(suffix));
        let events = self.lease.upstream.events("/infill", &Value::Object(fields)).await;
        match events {
            Ok(events) => Ok(Generation::of_completion(events)),
            Err(error) if error.status == StatusCode::NOT_IMPLEMENTED => Err(lacks(&self.lease.model, "insert")),
            Err(error) => Err(error),
        }
    }

    fn completion_fields(&self) -> Map<String, Value> {
        let mut fields = self.sampling.clone();
        fields.insert("stream".to_owned(), json!(true));
        if let Some(schema) = &self.schema {
            fields.insert("json_schema".to_owned(), schema.clone());
        }
        if let Some(count) = self.top_logprobs {
            fields.insert("n_probs".to_owned(), json!(count.max(1)));
        }
        fields
    }
}
