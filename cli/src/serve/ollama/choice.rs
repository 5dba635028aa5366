//! What all of Ollama's requests about a model have in common.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::options::Options;
use crate::serve::errors::{ApiError, ApiResult};
use crate::serve::keep_alive::KeepAlive;

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
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<i64>,
    /// Whether what is too long for the context may be shortened.
    #[serde(default)]
    truncate: Option<bool>,
    /// Whether an answer may go on when the context is full, by forgetting what came first.
    #[serde(default)]
    shift: Option<bool>,
}

impl Choice {
    /// The options in llama-server's words.
    ///
    /// # Errors
    /// 400 for a value of the wrong type.
    pub fn options(&self) -> ApiResult<Options> {
        Options::translate(self.options.as_ref().unwrap_or(&Map::new()))
    }

    /// How many alternatives to report beside the probability of each token; `None` when none is to be reported.
    ///
    /// # Errors
    /// 400 for a number out of range, as in Ollama also when nothing is to be reported.
    pub fn top_logprobs(&self) -> ApiResult<Option<usize>> {
        /// Ollama's own limit, and OpenAI's.
        const TOP_LOGPROBS_MAX: usize = 20;
        let count = usize::try_from(self.top_logprobs.unwrap_or(0)).ok().filter(|&count| count <= TOP_LOGPROBS_MAX);
        let count = count
            .ok_or_else(|| ApiError::bad_request(format!("top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}")))?;
        Ok((self.logprobs == Some(true)).then_some(count))
    }

    /// Whether what is too long may be shortened: unless the request says no.
    pub fn truncates(&self) -> bool {
        self.truncate != Some(false)
    }

    /// Whether an answer may push what came first out of the context: unless the request says no.
    pub fn shifts(&self) -> bool {
        self.shift != Some(false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn alternatives_are_counted_and_limited() {
        let choice = |value: Value| serde_json::from_value::<Choice>(value).unwrap();
        assert_eq!(choice(json!({})).top_logprobs().unwrap(), None);
        assert_eq!(choice(json!({"top_logprobs": 3})).top_logprobs().unwrap(), None);
        assert_eq!(choice(json!({"logprobs": true})).top_logprobs().unwrap(), Some(0));
        assert_eq!(choice(json!({"logprobs": true, "top_logprobs": 20})).top_logprobs().unwrap(), Some(20));
        for wrong in [21, -1] {
            assert_eq!(choice(json!({ "top_logprobs": wrong })).top_logprobs().unwrap_err().status, 400);
        }
    }
}
