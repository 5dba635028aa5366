//! Puts tool calls together, which arrive in fragments of their arguments' text.

use serde_json::{Value, json};

use crate::serve::errors::{ApiError, ApiResult};

/// The call that is arriving.
#[derive(Debug, Default)]
pub struct ToolCalls {
    open: Option<OpenCall>,
}

#[derive(Debug)]
struct OpenCall {
    index: u64,
    id: String,
    name: String,
    arguments: String,
}

impl ToolCalls {
    /// Takes a fragment. A fragment of another call ends the one before, which is returned in Ollama's form.
    ///
    /// # Errors
    /// When the arguments of the ended call are no JSON object.
    pub fn add(&mut self, part: &Value) -> ApiResult<Option<Value>> {
        let index = part["index"].as_u64().unwrap_or(0);
        let is_other = self.open.as_ref().is_some_and(|open| open.index != index);
        let finished = if is_other { self.finish()? } else { None };
        let open = self.open.get_or_insert_with(|| OpenCall {
            index,
            id: String::new(),
            name: String::new(),
            arguments: String::new(),
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        open.id.push_str(&text(&part["id"]));
        open.name.push_str(&text(&part["function"]["name"]));
        open.arguments.push_str(&text(&part["function"]["arguments"]));
        Ok(finished)
    }

    /// Ends the last call.
    ///
    /// # Errors
    /// As [`ToolCalls::add`].
    pub fn finish(&mut self) -> ApiResult<Option<Value>> {
        let Some(open) = self.open.take() else { return Ok(None) };
        let arguments = if open.arguments.trim().is_empty() { "{}" } else { &open.arguments };
        let arguments: Value = serde_json::from_str(arguments).map_err(|_| {
            ApiError::upstream(format!(
                "the call of {} was cut short: {}; a larger num_predict may let it finish",
                open.name, open.arguments
            ))
        })?;
        let function = json!({"index": open.index, "name": open.name, "arguments": arguments});
        Ok(Some(json!({"id": open.id, "function": function})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_become_whole_calls() {
        let mut calls = ToolCalls::default();
        let part = |index: u64, name: &str, arguments: &str| json!({"index": index, "id": if name.is_empty() { "" } else { "c" }, "function": {"name": name, "arguments": arguments}});
        assert_eq!(calls.add(&part(0, "weather", "{\"city\":")).unwrap(), None);
        assert_eq!(calls.add(&part(0, "", "\"Oslo\"}")).unwrap(), None);
        let first = calls.add(&part(1, "time", "")).unwrap().unwrap();
        let expected = json!({"id": "c", "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}});
        assert_eq!(first, expected);
        assert_eq!(calls.finish().unwrap().unwrap()["function"]["arguments"], json!({}));
        assert_eq!(calls.finish().unwrap(), None);
        calls.add(&part(0, "weather", "{\"city\":")).unwrap();
        assert!(calls.finish().unwrap_err().message.contains("weather"));
    }
}
