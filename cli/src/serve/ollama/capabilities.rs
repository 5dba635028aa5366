//! What a model can do, told by its chat template: tools, thinking, filling in the middle.

use serde::Deserialize;
use serde_json::{Value, json};

use super::images::is_sound;
use crate::projector::Projector;
use crate::serve::catalog::Model;
use crate::serve::errors::{ApiError, ApiResult};
use crate::serve::llama_server::loader::Loaded;

/// Ollama's `think`: whether to reason first, or how much.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Think {
    /// Yes or no.
    Switch(bool),
    /// `low`, `medium`, `high` or `max`.
    Effort(String),
}

impl Think {
    /// What the chat template is told. Few templates know `max`; the others get the most that they know.
    pub fn template_arguments(&self, template: Option<&str>) -> Value {
        match self {
            Self::Switch(enabled) => json!({ "enable_thinking": enabled }),
            Self::Effort(effort) => {
                let knows_max = template.is_some_and(|text| text.contains("'max'") || text.contains("\"max\""));
                let effort = if effort == "max" && !knows_max { "high" } else { effort };
                json!({"enable_thinking": true, "reasoning_effort": effort})
            }
        }
    }
}

/// Ollama's list of what a model can do. `template` is the chat template in use.
pub fn capabilities(model: &Model, template: Option<&str>) -> Vec<&'static str> {
    if model.is_embedding() {
        return vec!["embedding"];
    }
    let mut capabilities = vec!["completion"];
    let template = template.unwrap_or_default();
    let has_token = |key: &str| model.file.pairs.contains_key(key);
    if template.contains("tools") {
        capabilities.push("tools");
    }
    if has_token("tokenizer.ggml.fim_pre_token_id") || has_token("tokenizer.ggml.prefix_token_id") {
        capabilities.push("insert");
    }
    if thinks(template) {
        capabilities.push("thinking");
    }
    if let Some(projector) = &model.projector {
        capabilities.extend(projector.sees().then_some("vision"));
        capabilities.extend(projector.hears().then_some("audio"));
    }
    capabilities
}

/// The chat template that a loaded model is run with: its own, unless llama-server was given another.
pub fn template_of(loaded: &Loaded) -> Option<&str> {
    loaded.properties["chat_template"].as_str()
}

/// Refuses thinking where the model's chat template has no place for it.
///
/// # Errors
/// 400.
pub fn require_thinking(loaded: &Loaded, think: &Think) -> ApiResult<()> {
    if let Think::Effort(effort) = think {
        if !matches!(effort.as_str(), "low" | "medium" | "high" | "max") {
            return Err(ApiError::bad_request(format!(
                "invalid think value: {effort:?} (must be \"max\", \"high\", \"medium\", \"low\", true, or false)"
            )));
        }
    }
    if matches!(think, Think::Switch(false)) || template_of(loaded).is_some_and(thinks) {
        return Ok(());
    }
    Err(lacks(&loaded.model, "thinking"))
}

/// Refuses tools where the model's chat template would leave them out without a word.
///
/// # Errors
/// 400.
pub fn require_tools(loaded: &Loaded) -> ApiResult<()> {
    match loaded.properties["chat_template_caps"]["supports_tools"] == json!(false) {
        true => Err(lacks(&loaded.model, "tools")),
        false => Ok(()),
    }
}

/// Refuses pictures and sounds where the model has no projector for them.
///
/// # Errors
/// 400.
pub fn require_senses<'a>(model: &Model, images: impl IntoIterator<Item = &'a Value>) -> ApiResult<()> {
    let projector = model.projector.as_ref();
    for image in images {
        let (sense, has_it) = match is_sound(image) {
            true => ("audio", projector.is_some_and(Projector::hears)),
            false => ("vision", projector.is_some_and(Projector::sees)),
        };
        if !has_it {
            return Err(ApiError::bad_request(format!(
                "{:?} does not support {sense}: no projector (mmproj file) for it that fits lies beside the model, and none was given with --mmproj",
                model.name
            )));
        }
    }
    Ok(())
}

/// The refusal of what a model cannot do.
pub fn lacks(model: &Model, what: &str) -> ApiError {
    ApiError::bad_request(format!("{:?} does not support {what}", model.name))
}

fn thinks(template: &str) -> bool {
    ["enable_thinking", "reasoning_content", "<think>", "<|channel|>", "reasoning_effort"]
        .iter()
        .any(|word| template.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_effort_that_a_template_knows() {
        let arguments = |effort: &str, template| {
            let think: Think = serde_json::from_value(json!(effort)).unwrap();
            think.template_arguments(template)["reasoning_effort"].clone()
        };
        assert_eq!(arguments("max", Some("{% if reasoning_effort == 'max' %}")), "max");
        assert_eq!(arguments("max", Some("{{ reasoning_effort }}")), "high");
        assert_eq!(arguments("low", None), "low");
        assert_eq!(Think::Switch(false).template_arguments(None), json!({"enable_thinking": false}));
    }
}
