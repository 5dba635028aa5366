//! Pictures and sound in requests to `/v1`: they must come with the request. llama-server would also fetch what an
//! address names, and so reach from this machine what whoever asks could not reach himself.

use serde_json::Value;

use crate::serve::errors::{ApiError, ApiResult};

/// The fields that name pictures, sound or video in OpenAI's and Anthropic's requests.
const FIELDS: [&str; 5] = ["image_url", "input_audio", "input_video", "video_url", "source"];

/// Refuses addresses of media, wherever a request has them, but those that carry the data.
///
/// # Errors
/// 400, as Ollama.
pub fn refuse_remote(request: &Value) -> ApiResult<()> {
    // Only these hold content of messages.
    ["messages", "input", "prompt", "system"].iter().try_for_each(|field| look(&request[field]))
}

fn look(value: &Value) -> ApiResult<()> {
    match value {
        Value::Array(values) => values.iter().try_for_each(look),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let is_media = FIELDS.contains(&name.as_str());
            let addresses = [value.as_str(), value["url"].as_str(), value["data"].as_str()];
            match addresses.into_iter().flatten().find(|address| is_media && is_remote(address)) {
                Some(address) => Err(ApiError::bad_request(format!(
                    "{address:.80} is not fetched: send the data itself, as data:image/png;base64,..."
                ))),
                None => look(value),
            }
        }),
        _ => Ok(()),
    }
}

/// As llama-server decides: what begins so is an address, whatever follows.
fn is_remote(address: &str) -> bool {
    address.starts_with("http") || address.starts_with("file:")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_carries_its_data() {
        let check = |part: Value| refuse_remote(&json!({"messages": [{"role": "user", "content": [part]}]}));
        for remote in [
            json!({"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}),
            json!({"type": "image_url", "image_url": "https://example.org/x.png"}),
            json!({"type": "input_audio", "input_audio": {"data": "http://10.0.0.1/x.wav"}}),
            json!({"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}),
            json!({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "file:///x"}}]}),
        ] {
            assert!(check(remote.clone()).unwrap_err().message.contains("not fetched"), "{remote}");
        }
        for here in [
            json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}),
            json!({"type": "text", "text": "http://example.org"}),
            json!({"type": "tool_use", "input": {"url": "http://example.org"}}),
        ] {
            assert!(check(here.clone()).is_ok(), "{here}");
        }
        assert!(
            refuse_remote(&json!({"input": [{"content": [{"type": "input_image", "image_url": "http://x"}]}]}))
                .is_err()
        );
    }
}
