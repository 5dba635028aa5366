//! `GET /health`, for whoever watches over servers.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use crate::serve::errors::json_response;

/// This server answers. Whether a model is loaded is another question: requests load one.
pub async fn health() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}
