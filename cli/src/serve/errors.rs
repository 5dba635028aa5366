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
    /// How many tokens the prompt was too long for the context: a shorter one would have been answered.
    pub context_exceeded: Option<u64>,
}

/// The result of everything that answers a client.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of a status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), context_exceeded: None }
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
            context_exceeded: (error["type"] == "exceed_context_size_error").then(|| {
                let tokens = |name: &str| error[name].as_u64().unwrap_or(0);
                tokens("n_prompt_tokens").saturating_sub(tokens("n_ctx"))
            }),
        }
    }

    /// The body in Ollama's form.
    pub fn to_json(&self) -> Value {
        json!({ "error": self.message })
    }

    /// The response in the form that the clients of a path read: Anthropic's, OpenAI's or Ollama's.
    pub fn into_response_at(self, path: &str) -> Response<Body> {
        let body = if is_anthropic(path) {
            json!({"type": "error", "error": {"type": self.anthropic_type(), "message": self.message}})
        } else if path.starts_with("/v1/") {
            let kind = if self.status.is_client_error() { "invalid_request_error" } else { "api_error" };
            let error = json!({"message": self.message, "type": kind, "param": null, "code": self.status.as_u16()});
            json!({ "error": error })
        } else {
            self.to_json()
        };
        json_response(self.status, &body)
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status {
            StatusCode::BAD_REQUEST => "invalid_request_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            _ => "api_error",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        json_response(self.status, &self.to_json())
    }
}

/// Whether a path is of Anthropic's API.
pub fn is_anthropic(path: &str) -> bool {
    path == "/v1/messages" || path.starts_with("/v1/messages/")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_api_has_its_own_form() {
        for (path, expected) in [
            ("/api/chat", json!({"error": "no"})),
            (
                "/v1/models",
                json!({"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": 404}}),
            ),
            ("/v1/messages", json!({"type": "error", "error": {"type": "not_found_error", "message": "no"}})),
        ] {
            let response = ApiError::new(StatusCode::NOT_FOUND, "no").into_response_at(path);
            let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        }
    }
}
