//! A conversation in Ollama's words, translated for llama-server's chat endpoint.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::images;
use crate::serve::errors::{ApiError, ApiResult};

/// A message of a request.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    role: String,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    images: Option<Vec<Value>>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    tool_name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: Option<String>,
    function: Function,
}

#[derive(Clone, Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Value,
}

/// A conversation in llama-server's words.
///
/// # Errors
/// 400 for images that are none, and for roles that there are not.
pub fn translate(messages: &[Message]) -> ApiResult<Vec<Value>> {
    let mut translated = Vec::new();
    let mut calls = Calls::default();
    for message in messages {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        let role = message.role.to_lowercase();
        // OpenAI's newer name of the same; most chat templates know only the older one.
        let role = if role == "developer" { "system" } else { role.as_str() };
        set("role", json!(role));
        let text = message.content.as_deref().unwrap_or_default();
        set("content", images::content(text, message.images.as_deref())?);
        match role {
            "system" | "user" => {}
            "assistant" => {
                if let Some(thinking) = message.thinking.as_deref().filter(|thinking| !thinking.is_empty()) {
                    set("reasoning_content", json!(thinking));
                }
                let made: Vec<Value> = message.tool_calls.iter().flatten().map(|call| calls.make(call)).collect();
                if !made.is_empty() {
                    set("tool_calls", json!(made));
                }
            }
            "tool" => {
                set("tool_call_id", json!(calls.answered(message)));
                if let Some(name) = &message.tool_name {
                    set("name", json!(name));
                }
            }
            other => {
                return Err(ApiError::bad_request(format!(
                    "role '{other}' of a message is not known; write system, user, assistant or tool"
                )));
            }
        }
        translated.push(Value::Object(fields));
    }
    Ok(translated)
}

/// The pictures and sounds of a conversation.
pub fn images_of(messages: &[Message]) -> impl Iterator<Item = &Value> {
    messages.iter().flat_map(|message| message.images.iter().flatten())
}

/// The tool calls so far, by which results find theirs: Ollama's clients name the tool, or rely on the order.
#[derive(Default)]
struct Calls {
    /// Identifier, tool, whether a result has come.
    made: Vec<(String, String, bool)>,
}

impl Calls {
    fn make(&mut self, call: &ToolCall) -> Value {
        let id = call.id.clone().filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{}", self.made.len()));
        self.made.push((id.clone(), call.function.name.clone(), false));
        let arguments = match &call.function.arguments {
            Value::String(text) => text.clone(),
            Value::Null => "{}".to_owned(),
            other => other.to_string(),
        };
        json!({"id": id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}})
    }

    fn answered(&mut self, message: &Message) -> String {
        if let Some(id) = message.tool_call_id.clone() {
            return id;
        }
        let fits = |tool: &str| message.tool_name.as_deref().is_none_or(|name| name == tool);
        match self.made.iter_mut().find(|(_, tool, is_answered)| !is_answered && fits(tool)) {
            Some((id, _, is_answered)) => {
                *is_answered = true;
                id.clone()
            }
            None => String::new(),
        }
    }
}

/// Leaves out the oldest message that may go, so that a conversation fits: never a system message, never the last one,
/// and with a call of a tool the results that follow it. Whether one could be left out.
pub fn drop_oldest(messages: &mut Vec<Value>) -> bool {
    let Some(last) = messages.len().checked_sub(1) else { return false };
    let Some(oldest) = messages[..last].iter().position(|message| message["role"] != "system") else { return false };
    messages.remove(oldest);
    while messages.len() > oldest + 1 && messages[oldest]["role"] == "tool" {
        messages.remove(oldest);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(value: Value) -> Vec<Message> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn results_find_their_calls() {
        let translated = translate(&messages(json!([
            {"role": "user", "content": "?"},
            {"role": "assistant", "thinking": "hm", "tool_calls": [
                {"function": {"name": "a", "arguments": {"x": 1}}}, {"function": {"name": "b"}}]},
            {"role": "tool", "tool_name": "b", "content": "2"},
            {"role": "tool", "content": "1"},
        ])))
        .unwrap();
        assert_eq!(translated[1]["reasoning_content"], "hm");
        assert_eq!(translated[1]["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
        assert_eq!(translated[2]["tool_call_id"], "call_1");
        assert_eq!(translated[3]["tool_call_id"], "call_0");
    }

    #[test]
    fn roles_in_any_case_and_by_their_newer_name() {
        let translated = translate(&messages(json!([
            {"role": "developer", "content": "Be brief."}, {"role": "User", "content": "?"}, {"role": "ASSISTANT"}])));
        let roles: Vec<Value> = translated.unwrap().iter().map(|message| message["role"].clone()).collect();
        assert_eq!(roles, ["system", "user", "assistant"]);
    }

    #[test]
    fn arguments_keep_their_order() {
        let call = json!({"function": {"name": "f", "arguments": {"z": 1, "a": 2, "m": 3}}});
        let translated = translate(&messages(json!([{"role": "assistant", "tool_calls": [call]}]))).unwrap();
        assert_eq!(translated[0]["tool_calls"][0]["function"]["arguments"], r#"{"z":1,"a":2,"m":3}"#);
    }

    #[test]
    fn what_is_refused() {
        let refused = |value: Value| translate(&messages(value)).unwrap_err().message;
        assert!(refused(json!([{"role": "user", "content": "?", "images": ["http://x"]}])).contains("base64"));
        assert!(refused(json!([{"role": "robot", "content": "?"}])).contains("robot"));
    }

    #[test]
    fn the_oldest_go_first_and_the_last_stays() {
        let mut conversation: Vec<Value> =
            ["system", "user", "assistant", "tool", "user"].iter().map(|role| json!({"role": role})).collect();
        let roles = |conversation: &[Value]| -> Vec<String> {
            conversation.iter().map(|message| message["role"].as_str().unwrap().to_owned()).collect()
        };
        assert!(drop_oldest(&mut conversation));
        assert_eq!(roles(&conversation), ["system", "assistant", "tool", "user"]);
        assert!(drop_oldest(&mut conversation));
        assert_eq!(roles(&conversation), ["system", "user"]);
        assert!(!drop_oldest(&mut conversation) && !drop_oldest(&mut Vec::new()));
    }
}
