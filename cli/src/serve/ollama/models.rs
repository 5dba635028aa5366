//! What models there are: `GET /api/tags`, `GET /api/ps`, `POST /api/show`; and `GET /api/version`.

use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::capabilities::{capabilities, template_of};
use crate::model_file::ModelFile;
use crate::serve::catalog::Model;
use crate::serve::errors::{ApiResult, json_response};
use crate::serve::gpu_memory;
use crate::serve::http::request;
use crate::serve::server::Server;

/// The version of Ollama whose API is spoken: clients compare it to know what they may use. docs/SERVER.md has the table,
/// endpoint by endpoint; it was last compared with Ollama's source of 2026-08-21 (0.33.0).
const OLLAMA_VERSION: &str = "0.33.0";

/// `GET /api/version`.
pub async fn version() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"version": OLLAMA_VERSION, "hypura": env!("CARGO_PKG_VERSION")}))
}

/// `GET /api/tags`: all models.
pub async fn tags(State(server): State<Server>) -> Response<Body> {
    let models: Vec<Value> = server
        .list()
        .await
        .iter()
        .map(|model| {
            json!({
                "name": model.name,
                "model": model.name,
                "modified_at": timestamp(model.modified),
                "size": model.size_bytes(),
                "digest": model.digest,
                "details": model.details(),
                "capabilities": capabilities(model, model.file.chat_template()),
            })
        })
        .collect();
    json_response(StatusCode::OK, &json!({ "models": models }))
}

/// `GET /api/ps`: the model that is loaded.
pub async fn ps(State(server): State<Server>) -> Response<Body> {
    let mut models = Vec::new();
    if let Some(loaded) = server.loader.current() {
        let (in_ram, in_vram) = match loaded.process_id() {
            Some(process) => (memory_bytes(process), gpu_memory::held_by(process).await),
            None => (0, 0),
        };
        models.push(json!({
            "name": loaded.model.name,
            "model": loaded.model.name,
            "size": in_ram + in_vram,
            "digest": loaded.model.digest,
            "details": loaded.model.details(),
            "expires_at": expires_at(loaded.expires_in()),
            "size_vram": in_vram,
            "context_length": loaded.context_tokens,
        }));
    }
    json_response(StatusCode::OK, &json!({ "models": models }))
}

#[derive(Debug, Deserialize)]
struct ShowRequest {
    #[serde(default)]
    model: String,
    /// The field's older name.
    #[serde(default)]
    name: String,
    #[serde(default)]
    verbose: Option<bool>,
}

/// `POST /api/show`: everything about one model.
pub async fn show(State(server): State<Server>, body: Body) -> ApiResult<Response<Body>> {
    let request: ShowRequest = request::read(body, server.body_bytes_max).await?;
    let name = if request.model.is_empty() { request.name } else { request.model };
    let model = server.catalog.find(&name)?;
    let is_verbose = request.verbose == Some(true);
    let loaded = server.loader.current().filter(|loaded| loaded.model.is_same_file(&model));
    let template = loaded.as_deref().and_then(template_of).or_else(|| model.file.chat_template());
    let context_tokens =
        loaded.as_ref().map_or_else(|| server.loader.default_context_tokens(&model), |loaded| loaded.context_tokens);
    let mut object = json!({
        "modelfile": modelfile(&model, context_tokens),
        "parameters": format!("{:<30} {context_tokens}", "num_ctx"),
        "template": template.unwrap_or_default(),
        "details": model.details(),
        "model_info": model_info(&model, is_verbose),
        "capabilities": capabilities(&model, template),
        "modified_at": timestamp(model.modified),
    });
    if let Some(license) = model.file.text("general.license") {
        object["license"] = json!(license);
    }
    if let Some(projector) = &model.projector {
        object["projector_info"] = Value::Object(projector.file.pairs.clone());
    }
    if is_verbose {
        object["tensors"] = tensors(&model.file);
    }
    Ok(json_response(StatusCode::OK, &object))
}

fn modelfile(model: &Model, context_tokens: u32) -> String {
    format!(
        "# {} is served from its file.\nFROM {}\nPARAMETER num_ctx {context_tokens}\n",
        model.name,
        model.path.display()
    )
}

/// The key-value pairs of the header. The vocabulary is null unless it is asked for; the chat template has a field of its
/// own.
fn model_info(model: &Model, is_verbose: bool) -> Value {
    let mut pairs: Map<String, Value> = match is_verbose {
        true => hypura::gguf::key_values(&model.path, u64::MAX).unwrap_or_else(|_| model.file.pairs.clone()),
        false => model.file.pairs.clone(),
    };
    pairs.shift_remove("tokenizer.chat_template");
    // Editors show it as the name.
    pairs.entry("general.basename").or_insert_with(|| json!(model.file.title()));
    pairs.insert("general.parameter_count".to_owned(), json!(model.file.parameter_count()));
    Value::Object(pairs)
}

fn tensors(file: &ModelFile) -> Value {
    let tensors = file.gguf.tensors().iter().map(|tensor| {
        // GGUF has as many dimensions as are written; those that were filled up with 1 are left out.
        let used = tensor.shape.iter().rposition(|&length| length != 1).map_or(1, |last| last + 1);
        json!({"name": tensor.name, "type": tensor.ggml_type.name().to_uppercase(), "shape": tensor.shape[..used]})
    });
    Value::Array(tensors.collect())
}

/// A time as clients parse it (RFC 3339).
fn timestamp(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Ollama writes "never" as a time far away.
fn expires_at(left: Option<Duration>) -> String {
    const FAR: Duration = Duration::from_secs(100 * 366 * 86400);
    timestamp(SystemTime::now() + left.unwrap_or(FAR))
}

/// The memory that a process holds, without what is mapped from files and may be dropped: slots, caches, buffers.
pub fn memory_bytes(process_id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap_or_default();
    let kibibytes = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    (kibibytes("RssAnon:") + kibibytes("RssShmem:")) << 10
}
