//! What is longer than the context is made to fit, as Ollama does unless a request says `"truncate": false`: a
//! conversation loses its oldest messages, then the beginning of its last one; a text loses its middle, after the
//! tokens that `num_keep` protects.

use serde_json::{Map, Value, json};

use super::images::{set_text, text_of};
use super::messages::drop_oldest;
use crate::serve::errors::{ApiError, ApiResult};
use crate::serve::llama_server::loader::Loaded;

/// Tokens that are left free for the answer when a prompt is cut: an eighth of the context, at most so many.
const ROOM_TOKENS_MAX: u64 = 512;

/// Makes a conversation smaller that has so many tokens too many. Whether that was possible.
///
/// # Errors
/// When llama-server cannot be asked.
pub async fn conversation(loaded: &Loaded, messages: &mut Vec<Value>, excess: u64) -> ApiResult<bool> {
    if drop_oldest(messages) {
        return Ok(true);
    }
    let Some(content) = messages.last().and_then(|message| text_of(&message["content"])) else { return Ok(false) };
    let tokens = tokens_of(loaded, content, false).await?;
    // Cut in the middle of a word, a text may have a few tokens more than before.
    const SLACK_TOKENS: u64 = 8;
    let Some(rest) = tokens.get(to_index(excess + room(loaded) + SLACK_TOKENS)..).filter(|rest| !rest.is_empty())
    else {
        return Ok(false);
    };
    let text = loaded.upstream.ask("/detokenize", &json!({ "tokens": rest })).await?;
    // Half of a character may have gone with the token before.
    let text = text["content"].as_str().unwrap_or_default().trim_start_matches('\u{fffd}').to_owned();
    if let Some(last) = messages.last_mut() {
        set_text(&mut last["content"], &text);
    }
    Ok(true)
}

/// Makes a prompt of tokens and text smaller that has so many tokens too many; the result is tokens only.
///
/// # Errors
/// When it cannot be cut, or llama-server cannot be asked.
pub async fn prompt(loaded: &Loaded, prompt: &Value, keep: u64, excess: u64) -> ApiResult<Value> {
    let parts: Vec<Value> = prompt.as_array().cloned().unwrap_or_else(|| vec![prompt.clone()]);
    let mut tokens: Vec<u64> = Vec::new();
    for part in parts {
        match part {
            Value::String(text) => {
                let begins = tokens.is_empty();
                tokens.extend(tokens_of(loaded, &text, begins).await?);
            }
            other => tokens.extend(other.as_u64()),
        }
    }
    match without_middle(tokens, to_index(keep), to_index(excess + room(loaded))) {
        Some(tokens) => Ok(json!(tokens)),
        None => {
            Err(ApiError::bad_request("the prompt is longer than the context, even without all that may be left out"))
        }
    }
}

/// Limits an answer to what the context has room for after the prompt, so that nothing is shifted out of it.
pub fn limit_to_room(loaded: &Loaded, fields: &mut Map<String, Value>, prompt_tokens: usize) {
    let room = u64::from(loaded.context_tokens).saturating_sub(prompt_tokens as u64 + 1).max(1);
    let asked = fields.get("n_predict").and_then(Value::as_u64);
    fields.insert("n_predict".to_owned(), json!(asked.map_or(room, |asked| asked.min(room))));
}

/// The tokens of a text.
///
/// # Errors
/// When llama-server cannot be asked.
pub async fn tokens_of(loaded: &Loaded, text: &str, begins: bool) -> ApiResult<Vec<u64>> {
    let request = json!({"content": text, "add_special": begins, "parse_special": true});
    let answer = loaded.upstream.ask("/tokenize", &request).await?;
    Ok(answer["tokens"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect())
}

fn room(loaded: &Loaded) -> u64 {
    u64::from(loaded.context_tokens / 8).min(ROOM_TOKENS_MAX)
}

fn to_index(tokens: u64) -> usize {
    usize::try_from(tokens).unwrap_or(usize::MAX)
}

/// All but so many tokens after the first ones; `None` when there are not so many.
fn without_middle(mut tokens: Vec<u64>, keep: usize, dropped: usize) -> Option<Vec<u64>> {
    let end = keep.checked_add(dropped).filter(|&end| end < tokens.len())?;
    tokens.drain(keep..end);
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_goes_and_both_ends_stay() {
        assert_eq!(without_middle(vec![1, 2, 3, 4, 5, 6], 2, 3), Some(vec![1, 2, 6]));
        assert_eq!(without_middle(vec![1, 2, 3], 0, 2), Some(vec![3]));
        assert_eq!(without_middle(vec![1, 2, 3], 1, 2), None, "something must be left to answer");
        assert_eq!(without_middle(vec![1], usize::MAX, 2), None);
    }
}
