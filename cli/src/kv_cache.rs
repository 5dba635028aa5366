//! How much memory the context takes: keys and values of every layer, kept for every token.

use serde_json::Value;

use crate::model_file::ModelFile;

/// Bytes of an element: llama.cpp keeps f16 unless it is told otherwise.
const ELEMENT_BYTES: u64 = 2;

/// Bytes that one token of context takes in all layers. At most so: layers that attend to a window only keep less.
/// 0 for models whose header does not tell, and for those without attention.
pub fn bytes_per_token(model: &ModelFile) -> u64 {
    let hyper = model.gguf.hyper_parameters();
    let number = |key: &str| model.architecture_value(key).and_then(Value::as_u64);
    let heads = model.architecture_value("attention.head_count").map_or(0, |heads| of_layer(heads, 0));
    let head_length = hyper.embedding_length.checked_div(heads).unwrap_or(0);
    let key_length = number("attention.key_length").unwrap_or(head_length);
    let value_length = match number("attention.kv_lora_rank") {
        // Multi-head latent attention: one vector a layer is key and value.
        Some(_) if number("attention.key_length_mla").is_some() => 0,
        _ => number("attention.value_length").unwrap_or(head_length),
    };
    let heads_of = |layer: u64| match model.architecture_value("attention.head_count_kv") {
        Some(heads) => of_layer(heads, layer),
        None => model.architecture_value("attention.head_count").map_or(0, |heads| of_layer(heads, layer)),
    };
    let heads: u64 = (0..hyper.block_count.min(LAYERS_MAX)).map(heads_of).fold(0, u64::saturating_add);
    heads.saturating_mul(key_length.saturating_add(value_length)).saturating_mul(ELEMENT_BYTES)
}

/// More layers than this are a damaged header.
const LAYERS_MAX: u64 = 1 << 16;

/// A value that may differ from layer to layer.
fn of_layer(value: &Value, layer: u64) -> u64 {
    match value {
        Value::Array(values) => usize::try_from(layer).ok().and_then(|layer| values.get(layer)?.as_u64()).unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_gguf::{Pair, TestModel};

    fn bytes(pairs: &[(&str, Pair)]) -> u64 {
        let common = [("general.architecture", Pair::Text("a")), ("a.block_count", Pair::Number(4))];
        bytes_per_token(&TestModel::write(&[&common, pairs].concat(), &[]).open())
    }

    #[test]
    fn keys_and_values_of_every_layer() {
        let shape = [("a.embedding_length", Pair::Number(64)), ("a.attention.head_count", Pair::Number(8))];
        // 4 layers, 8 heads of 8, keys and values, 2 bytes.
        assert_eq!(bytes(&shape), 4 * 8 * 16 * 2);
        let grouped = [&shape[..], &[("a.attention.head_count_kv", Pair::Number(2))]].concat();
        assert_eq!(bytes(&grouped), 4 * 2 * 16 * 2);
        let long = [&grouped[..], &[("a.attention.key_length", Pair::Number(32))]].concat();
        assert_eq!(bytes(&long), 4 * 2 * (32 + 8) * 2);
        assert_eq!(bytes(&[]), 0);
    }

    #[test]
    fn layers_may_differ() {
        assert_eq!([0, 1, 9].map(|layer| of_layer(&json!([3, 0]), layer)), [3, 0, 0]);
        assert_eq!(of_layer(&json!(5), 7), 5);
        assert_eq!(of_layer(&json!("x"), 0), 0);
    }
}
