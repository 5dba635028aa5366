//! `/v1/*`: passed to llama-server, which speaks OpenAI's API itself. Only the model's name is looked at, to load it.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderName, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::request::too_large;
use crate::serve::catalog::Model;
use crate::serve::errors::{ApiError, ApiResult, json_response};
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
        Err(error) => error.into_openai_response(),
    }
}

fn describe(model: &Model) -> Value {
    let created = model.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({"id": model.name, "object": "model", "created": created, "owned_by": "library"})
}

/// Everything else below `/v1`.
pub async fn pass(State(server): State<Server>, request: Request<Body>) -> Response<Body> {
    match forward(&server, request).await {
        Ok(response) => response,
        Err(error) => error.into_openai_response(),
    }
}

async fn forward(server: &Server, request: Request<Body>) -> ApiResult<Response<Body>> {
    let (mut head, body) = request.into_parts();
    let bytes =
        axum::body::to_bytes(body, server.body_bytes_max).await.map_err(|_| too_large(server.body_bytes_max))?;
    let model = wanted(server, &head.method, &bytes)?;
    let lease = server.loader.acquire(&model, None, None).await?;
    // About the connection to us, not about the request.
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::AUTHORIZATION, header::ORIGIN] {
        head.headers.remove(name);
    }
    head.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    let response = lease.upstream.send(Request::from_parts(head, Body::from(bytes))).await?;
    let (mut head, body) = response.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        head.headers.remove(name);
    }
    // The server in front decides who may read an answer.
    let foreign: Vec<HeaderName> =
        head.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    foreign.iter().for_each(|name| drop(head.headers.remove(name)));
    // The lease lives as long as the body: the model stays until the answer has been sent.
    let body = body.map(move |bytes| {
        let _lease = &lease;
        bytes
    });
    Ok(Response::from_parts(head, Body::from_stream(body)).into_response())
}

/// The model that a request is for: the only one there is, whatever it is called, or the one of the name.
fn wanted(server: &Server, method: &Method, body: &Bytes) -> ApiResult<Arc<Model>> {
    if let Some(model) = server.catalog.only() {
        return Ok(Arc::clone(model));
    }
    let name = match *method {
        Method::POST => {
            serde_json::from_slice::<Value>(body).ok().and_then(|body| Some(body["model"].as_str()?.to_owned()))
        }
        _ => None,
    };
    match (name, server.loader.current()) {
        (Some(name), _) => server.catalog.find(&name),
        (None, Some(loaded)) => Ok(Arc::clone(&loaded.model)),
        (None, None) => Err(ApiError::bad_request("model is required: GET /v1/models lists those that there are")),
    }
}
