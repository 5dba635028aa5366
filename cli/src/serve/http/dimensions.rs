//! `dimensions` of `POST /v1/embeddings`, which llama-server ignores: vectors are shortened here.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::serve::errors::{ApiResult, json_response};
use crate::serve::llama_server::loader::Loaded;

/// Embeds, and keeps the first numbers of each vector.
///
/// # Errors
/// What llama-server refuses.
pub async fn embed(loaded: &Loaded, mut request: Value) -> ApiResult<Response<Body>> {
    let dimensions = request["dimensions"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let is_base64 = request["encoding_format"] == "base64";
    request["encoding_format"] = json!("float");
    let mut answer = loaded.upstream.ask("/v1/embeddings", &request).await?;
    for item in answer["data"].as_array_mut().into_iter().flatten() {
        let numbers = item["embedding"].as_array().into_iter().flatten().filter_map(Value::as_f64);
        let mut vector: Vec<f64> = numbers.collect();
        if dimensions > 0 {
            shorten(&mut vector, dimensions);
        }
        item["embedding"] = if is_base64 { json!(base64_of(&vector)) } else { json!(vector) };
    }
    Ok(json_response(StatusCode::OK, &answer))
}

/// The first numbers of a vector, brought back to length 1: meaningful for models that were trained for it.
pub fn shorten(vector: &mut Vec<f64>, dimensions: usize) {
    vector.truncate(dimensions);
    let length = vector.iter().map(|number| number * number).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|number| *number /= length);
    }
}

/// OpenAI's compact form: little-endian numbers of 4 bytes.
fn base64_of(vector: &[f64]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| (*number as f32).to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_length_one() {
        let mut vector = vec![3.0, 4.0, 12.0];
        shorten(&mut vector, 2);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = vec![0.0; 3];
        shorten(&mut zero, 5);
        assert_eq!(zero, [0.0; 3]);
        assert_eq!(base64_of(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
