//! The live page, `GET /hypura`: one file without anything from elsewhere, and the figures that it shows.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use hypura::gguf::{Role, role_of};
use serde_json::{Value, json};

use crate::model_file::ModelFile;
use crate::serve::errors::json_response;
use crate::serve::server::Server;

/// The page.
pub async fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(include_str!("live.html")));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    // The page needs nothing from anywhere else, and nobody else may put it into a frame.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

/// What it shows, asked for every second.
pub async fn figures(State(server): State<Server>) -> Response<Body> {
    let loaded = server.loader.current();
    let model = loaded.as_ref().map(|loaded| {
        json!({
            "name": loaded.model.name,
            "details": loaded.model.details(),
            "context_tokens": loaded.context_tokens,
            "in_flight": loaded.in_flight(),
            "expires_in_seconds": loaded.expires_in().map(|left| left.as_secs_f64()),
            "weights": weights(&loaded.model.file),
        })
    });
    let statistics = server.statistics();
    json_response(StatusCode::OK, &json!({"model": model, "statistics": statistics}))
}

/// Bytes of the weights by their part, and the streamable ones of every layer.
fn weights(file: &ModelFile) -> Value {
    let (mut experts, mut feed_forward, mut other) = (0, 0, 0);
    for tensor in file.gguf.tensors() {
        match role_of(tensor) {
            Role::Expert => experts += tensor.size_bytes,
            Role::DenseFeedForward | Role::SharedExpert => feed_forward += tensor.size_bytes,
            Role::Attention | Role::Other => other += tensor.size_bytes,
        }
    }
    json!({"experts": experts, "feed_forward": feed_forward, "other": other})
}
