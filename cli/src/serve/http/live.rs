//! The live page, `GET /hypura`: one file without anything from elsewhere, and the figures that it shows.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use hypura::gguf::{Role, role_of};
use serde_json::{Value, json};

use crate::model_file::ModelFile;
use crate::serve::errors::json_response;
use crate::serve::llama_server::loader::Loaded;
use crate::serve::ollama::models::memory_bytes;
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
            "memory_bytes": loaded.process_id().map(memory_bytes),
            "weights": weights(&loaded.model.file),
            "layers": layers(&loaded.model.file),
        })
    });
    let served = match &loaded {
        Some(loaded) => served(loaded).await,
        None => Value::Null,
    };
    let loading = server.loader.loading();
    let loading = loading.map(|(name, time)| json!({"name": name, "seconds": time.as_secs_f64()}));
    let figures = json!({"model": model, "loading": loading, "served": served, "statistics": server.statistics()});
    json_response(StatusCode::OK, &figures)
}

/// What llama-server counts itself, also of a model of which nothing is streamed; null while it is too busy to tell.
async fn served(loaded: &Loaded) -> Value {
    const PATIENCE: Duration = Duration::from_millis(400);
    let Ok(Ok(text)) = tokio::time::timeout(PATIENCE, loaded.upstream.get("/metrics")).await else {
        return Value::Null;
    };
    let text = String::from_utf8_lossy(&text);
    let counter = |name: &str| -> Option<f64> {
        text.lines()
            .find_map(|line| line.strip_prefix("llamacpp:")?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    json!({"prompt_tokens": counter("prompt_tokens_total"), "generated_tokens": counter("tokens_predicted_total")})
}

/// Bytes of the weights by their part.
fn weights(file: &ModelFile) -> Value {
    let (mut experts, mut feed_forward, mut other) = (0, 0, 0);
    for tensor in file.gguf.tensors() {
        match role_of(tensor) {
            Role::Expert | Role::OtherExpert => experts += tensor.size_bytes,
            Role::DenseFeedForward | Role::SharedExpert => feed_forward += tensor.size_bytes,
            Role::Attention | Role::Table | Role::TokenEmbedding | Role::Other => other += tensor.size_bytes,
        }
    }
    json!({"experts": experts, "feed_forward": feed_forward, "other": other})
}

/// Bytes of every layer in order; what is outside the layers is left out. What of them is streamed, and in RAM, is in the statistics.
fn layers(file: &ModelFile) -> Value {
    let mut layers: BTreeMap<u32, u64> = BTreeMap::new();
    for tensor in file.gguf.tensors() {
        let Some(layer) = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()) else {
            continue;
        };
        *layers.entry(layer).or_default() += tensor.size_bytes;
    }
    layers.into_iter().map(|(number, bytes)| json!({"layer": number, "bytes": bytes})).collect()
}
