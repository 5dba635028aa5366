//! `POST /api/embed` and its predecessor `POST /api/embeddings`.

use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::nanoseconds;
use super::choice::Choice;
use crate::serve::errors::{ApiError, ApiResult, json_response};
use crate::serve::http::dimensions::shorten;
use crate::serve::http::request;
use crate::serve::llama_server::loader::Lease;
use crate::serve::server::Server;

#[derive(Debug, Deserialize)]
struct EmbedRequest {
    #[serde(flatten)]
    choice: Choice,
    #[serde(default)]
    input: Option<Input>,
    #[serde(default)]
    dimensions: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct OldRequest {
    #[serde(flatten)]
    choice: Choice,
    #[serde(default)]
    prompt: Option<String>,
}

/// Embeds texts as vectors of length 1.
pub async fn embed(State(server): State<Server>, body: Body) -> ApiResult<Response<Body>> {
    let began = Instant::now();
    let request: EmbedRequest = request::read(body, server.body_bytes_max).await?;
    let model = server.catalog.find(&request.choice.model)?;
    let options = request.choice.options()?;
    let texts = match request.input {
        None => Vec::new(),
        Some(Input::One(text)) if text.is_empty() => Vec::new(),
        Some(Input::One(text)) => vec![text],
        Some(Input::Many(texts)) => texts,
    };
    let lease = server.loader.acquire(&model, options.context_tokens, request.choice.keep_alive).await?;
    let (mut embeddings, mut token_count) = (Vec::new(), 0);
    if !texts.is_empty() {
        let inputs = tokenize(&lease, &texts, request.choice.truncates()).await?;
        token_count = inputs.iter().map(Vec::len).sum();
        embeddings = vectors(&lease, &inputs, true).await?;
    }
    if let Some(dimensions) = request.dimensions.filter(|&dimensions| dimensions > 0) {
        embeddings.iter_mut().for_each(|vector| shorten(vector, dimensions));
    }
    let object = json!({
        "model": request.choice.model,
        "embeddings": embeddings,
        "total_duration": nanoseconds(began.elapsed()),
        "load_duration": nanoseconds(lease.load_duration),
        "prompt_eval_count": token_count,
    });
    Ok(json_response(StatusCode::OK, &object))
}

/// Embeds one text as the vector that the model gives, of any length.
pub async fn embeddings(State(server): State<Server>, body: Body) -> ApiResult<Response<Body>> {
    let request: OldRequest = request::read(body, server.body_bytes_max).await?;
    let model = server.catalog.find(&request.choice.model)?;
    let options = request.choice.options()?;
    let lease = server.loader.acquire(&model, options.context_tokens, request.choice.keep_alive).await?;
    let text = request.prompt.filter(|prompt| !prompt.is_empty());
    let vector = match text {
        Some(text) => {
            let inputs = tokenize(&lease, &[text], true).await?;
            vectors(&lease, &inputs, false).await?.pop().unwrap_or_default()
        }
        None => Vec::new(),
    };
    Ok(json_response(StatusCode::OK, &json!({ "embedding": vector })))
}

/// The tokens of texts, cut to the context.
async fn tokenize(lease: &Lease, texts: &[String], truncates: bool) -> ApiResult<Vec<Vec<u64>>> {
    // llama-server leaves room for a token that is never generated.
    let tokens_max = (lease.context_tokens as usize).saturating_sub(1).max(1);
    let mut inputs = Vec::new();
    for text in texts {
        let request = json!({"content": text, "add_special": true, "parse_special": true});
        let answer = lease.upstream.ask("/tokenize", &request).await?;
        let tokens = answer["tokens"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        let mut tokens: Vec<u64> = tokens.collect();
        if tokens.is_empty() {
            return Err(ApiError::bad_request("an input is empty: there is nothing to embed"));
        }
        if tokens.len() > tokens_max {
            if !truncates {
                return Err(ApiError::bad_request(format!(
                    "the input length exceeds the context length: {} tokens, {tokens_max} can be embedded",
                    tokens.len()
                )));
            }
            // Embedding models look for their last token at the end.
            let last = tokens[tokens.len() - 1];
            tokens.truncate(tokens_max - 1);
            tokens.push(last);
        }
        inputs.push(tokens);
    }
    Ok(inputs)
}

async fn vectors(lease: &Lease, inputs: &[Vec<u64>], normalizes: bool) -> ApiResult<Vec<Vec<f64>>> {
    // 2 is the Euclidean norm, -1 none.
    let request = json!({"content": inputs, "embd_normalize": if normalizes { 2 } else { -1 }});
    let answer = lease.upstream.ask("/embedding", &request).await?;
    let mut indexed: Vec<(u64, Vec<f64>)> = Vec::new();
    for item in answer.as_array().into_iter().flatten() {
        let vector = item["embedding"][0].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        indexed.push((item["index"].as_u64().unwrap_or(0), vector));
    }
    indexed.sort_by_key(|(index, _)| *index);
    if indexed.len() != inputs.len() {
        return Err(ApiError::upstream(format!("llama-server embedded {} of {} inputs", indexed.len(), inputs.len())));
    }
    Ok(indexed.into_iter().map(|(_, vector)| vector).collect())
}
