//! What Ollama's programs ask about its cloud: `GET /api/status` and `POST /api/me`. There is none here.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use crate::serve::errors::{ApiError, json_response};

/// `GET /api/status`: the cloud is switched off.
pub async fn status() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"cloud": {"disabled": true, "source": "config"}}))
}

/// `POST /api/me`: nobody is signed in.
pub async fn me() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized: this server has no accounts and needs none")
}
