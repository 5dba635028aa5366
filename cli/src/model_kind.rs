//! GGUF files that are no models: what goes with one, told by `general.type` and the architecture.

use serde_json::{Map, Value};

/// What a file is instead of a model, and what to do with it; `None` for a model.
pub fn not_a_model(pairs: &Map<String, Value>) -> Option<&'static str> {
    let text = |key: &str| pairs.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, architecture) = (text("general.type"), text("general.architecture"));
    let is_projector = is_projector(pairs);
    match kind {
        _ if is_projector => {
            Some("a projector, which gives a model eyes or ears; name the model, and this file with --mmproj")
        }
        "adapter" => Some("an adapter (LoRA) for a model; name the model, and this file after -- with --lora"),
        "imatrix" => Some("an importance matrix, which quantising uses; name a model"),
        _ if architecture == "controlvector" => {
            Some("a control vector for a model; name the model, and this file after -- with --control-vector")
        }
        "vocab" => Some("a vocabulary without weights; name a model"),
        _ => None,
    }
}

/// Whether a file is a projector, which turns images or sound into what a model reads.
pub fn is_projector(pairs: &Map<String, Value>) -> bool {
    let text = |key: &str| pairs.get(key).and_then(Value::as_str).unwrap_or_default();
    matches!(text("general.type"), "mmproj" | "projector" | "clip-vision") || text("general.architecture") == "clip"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_goes_with_a_model_is_none() {
        let told = |kind: Value, architecture: &str| {
            let pairs = json!({"general.type": kind, "general.architecture": architecture});
            not_a_model(pairs.as_object().unwrap()).map(|what| what.split([',', ' ']).nth(1).unwrap_or_default())
        };
        assert_eq!(told(json!("model"), "llama"), None);
        assert_eq!(told(Value::Null, "qwen3moe"), None, "older files do not say");
        assert_eq!(told(json!("mmproj"), "clip"), Some("projector"));
        assert_eq!(told(Value::Null, "clip"), Some("projector"));
        assert_eq!(told(json!("adapter"), "llama"), Some("adapter"));
        assert_eq!(told(json!("imatrix"), ""), Some("importance"));
        assert_eq!(told(Value::Null, "controlvector"), Some("control"));
    }
}
