//! What a client is told when something fails, in Ollama's form: a status and `{"error": "..."}`.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

/// A refusal or a failure, with a sentence for whoever reads the response.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What happened, and what to do about it.
    pub message: String,
    /// Whether the prompt was too long for the context: a shorter one would have been answered.
    pub context_exceeded: bool,
}

/// The result of everything that answers a client.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of a status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), context_exceeded: false }
    }

    /// The request cannot be understood or asks for what cannot be.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// There is no model of this name.
    pub fn no_such_model(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("model '{name}' not found; GET /api/tags lists those that there are"))
    }

    /// llama-server failed, not the client.
    pub fn upstream(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// What llama-server's error object says.
    pub fn from_upstream(status: StatusCode, body: &Value) -> Self {
        let error = &body["error"];
        let message = error["message"].as_str().or(error.as_str());
        Self {
            status,
            message: message.map_or_else(|| format!("llama-server answered {status}"), str::to_owned),
            context_exceeded: error["type"] == "exceed_context_size_error",
        }
    }

    /// The body in Ollama's form.
    pub fn to_json(&self) -> Value {
        json!({ "error": self.message })
    }

    /// The response in OpenAI's form, for `/v1`.
    pub fn into_openai_response(self) -> Response<Body> {
        let kind = if self.status.is_client_error() { "invalid_request_error" } else { "api_error" };
        let error = json!({"message": self.message, "type": kind, "param": null, "code": self.status.as_u16()});
        json_response(self.status, &json!({ "error": error }))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        json_response(self.status, &self.to_json())
    }
}

/// A response that is one JSON value.
pub fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json; charset=utf-8"));
    response
}
