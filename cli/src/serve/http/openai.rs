//! `/v1/*`: passed to llama-server, which speaks OpenAI's and Anthropic's APIs itself. The model's name is looked at,
//! to load it, and what llama-server would drop without a word.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::StreamExt;
use futures_util::future::Either;
use serde_json::{Value, json};

use super::dimensions;
use super::media::refuse_remote;
use super::request::too_large;
use crate::serve::catalog::Model;
use crate::serve::errors::{ApiError, ApiResult, is_anthropic, json_response};
use crate::serve::llama_server::sse;
use crate::serve::llama_server::upstream::collect;
use crate::serve::ollama::capabilities::require_tools;
use crate::serve::server::Server;

/// `GET /v1/models`.
pub async fn models(State(server): State<Server>) -> Response<Body> {
    let models: Vec<Value> = server.list().await.iter().map(|model| describe(model)).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{name}`.
pub async fn model(State(server): State<Server>, Path(name): Path<String>) -> Response<Body> {
    match server.catalog.find(&name) {
        Ok(model) => json_response(StatusCode::OK, &describe(&model)),
        Err(error) => error.into_response_at("/v1/models/"),
    }
}

fn describe(model: &Model) -> Value {
    let created = model.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({"id": model.name, "object": "model", "created": created, "owned_by": "library"})
}

/// Everything else below `/v1`.
pub async fn pass(State(server): State<Server>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match forward(&server, &path, request).await {
        Ok(response) => response,
        Err(error) => error.into_response_at(&path),
    }
}

async fn forward(server: &Server, path: &str, request: Request<Body>) -> ApiResult<Response<Body>> {
    let (mut head, body) = request.into_parts();
    let bytes =
        axum::body::to_bytes(body, server.body_bytes_max).await.map_err(|_| too_large(server.body_bytes_max))?;
    // What is no JSON is llama-server's to refuse.
    let asked: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    refuse_remote(&asked)?;
    let model = wanted(server, asked["model"].as_str())?;
    let lease = server.loader.acquire(&model, None, None).await?;
    if asked["tools"].as_array().is_some_and(|tools| !tools.is_empty()) {
        require_tools(&lease)?;
    }
    if path == "/v1/embeddings" && asked["dimensions"].is_u64() {
        return dimensions::embed(&lease, asked).await;
    }
    // About the connection to us, not about the request.
    for name in ["host", "connection", "transfer-encoding", "authorization", "x-api-key", "origin"] {
        head.headers.remove(name);
    }
    head.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    let failures = lease.upstream.failures().clone();
    let began = failures.now();
    let response = lease.upstream.send(Request::from_parts(head, Body::from(bytes))).await?;
    if !response.status().is_success() {
        let status = response.status();
        let body = collect(response.into_body()).await?;
        let mut body: Value = serde_json::from_slice(&body).unwrap_or_default();
        failures.explain_json(began, &mut body).await;
        return match is_anthropic(path) || body["error"].is_null() {
            true => Err(ApiError::from_upstream(status, &body)),
            false => Ok(json_response(status, &body)),
        };
    }
    let (mut head, body) = response.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        head.headers.remove(name);
    }
    // The server in front decides who may read an answer.
    let foreign: Vec<HeaderName> =
        head.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    foreign.iter().for_each(|name| drop(head.headers.remove(name)));
    // The lease lives as long as the body: the model stays until the answer has been sent.
    let is_events =
        head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event"));
    let body = match is_events {
        true => Either::Left(sse::explained(body, failures, began)),
        false => Either::Right(body),
    };
    let body = body.map(move |bytes| {
        let _lease = &lease;
        bytes
    });
    Ok(Response::from_parts(head, Body::from_stream(body)).into_response())
}

/// The model that a request is for: the only one there is, whatever it is called, the one of the name, or the loaded
/// one.
fn wanted(server: &Server, name: Option<&str>) -> ApiResult<Arc<Model>> {
    if let Some(model) = server.catalog.only() {
        return Ok(model);
    }
    match (name, server.loader.current()) {
        (Some(name), _) => server.catalog.find(name),
        (None, Some(loaded)) => Ok(Arc::clone(&loaded.model)),
        (None, None) => Err(ApiError::bad_request("model is required: GET /v1/models lists those that there are")),
    }
}
