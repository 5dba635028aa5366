//! Reading a client's request, and what all requests about a model have in common.

use axum::body::Body;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::serve::errors::{ApiError, ApiResult};
use crate::serve::keep_alive::KeepAlive;
use crate::serve::ollama::options::Options;

/// The fields that choose a model and how it is run.
#[derive(Debug, Deserialize)]
pub struct Choice {
    /// The model's name.
    #[serde(default)]
    pub model: String,
    /// Ollama's options.
    #[serde(default)]
    options: Option<Map<String, Value>>,
    /// How long to keep the model afterwards.
    #[serde(default)]
    pub keep_alive: Option<KeepAlive>,
}

impl Choice {
    /// The options in llama-server's words.
    ///
    /// # Errors
    /// 400 for a value of the wrong type.
    pub fn options(&self) -> ApiResult<Options> {
        Options::translate(self.options.as_ref().unwrap_or(&Map::new()))
    }
}

/// Reads a body as JSON, whatever its type is declared to be: curl declares a form.
///
/// # Errors
/// 413 above the limit, 400 for what is no such JSON.
pub async fn read<T: DeserializeOwned>(body: Body, bytes_max: usize) -> ApiResult<T> {
    let bytes = axum::body::to_bytes(body, bytes_max).await.map_err(|_| too_large(bytes_max))?;
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::bad_request("missing request body"));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the request is not understood: {error}")))
}

/// The refusal of a body above the limit.
pub fn too_large(bytes_max: usize) -> ApiError {
    let message = format!("the request has more than {bytes_max} bytes; hypura serve --body-limit allows more");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}
