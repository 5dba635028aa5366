//! Reading a client's request.

use axum::body::Body;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use crate::serve::errors::{ApiError, ApiResult};

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
