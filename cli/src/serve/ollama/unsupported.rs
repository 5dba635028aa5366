//! What Ollama does with its own store of models, and this server, which serves files that you have, does not.

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};
use axum::response::IntoResponse;

use crate::serve::errors::ApiError;
use crate::serve::server::Server;

/// `push`, `create`, `copy`, `delete`, `blobs`.
pub async fn unsupported(State(server): State<Server>, uri: Uri) -> Response<Body> {
    let verb = uri.path().trim_start_matches("/api/").split('/').next().unwrap_or_default();
    let message = format!(
        "{verb} is not supported: this server serves the GGUF files of {} as they are; add or remove models there",
        server.catalog.place().display()
    );
    ApiError::new(StatusCode::NOT_IMPLEMENTED, message).into_response()
}

/// Any other path.
pub async fn not_found(uri: Uri) -> Response<Body> {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path())).into_response()
}

/// A known path with another verb.
pub async fn wrong_method() -> Response<Body> {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed").into_response()
}
