//! Ollama's `options` in the words of llama-server.

use serde_json::{Map, Value, json};

use crate::serve::errors::{ApiError, ApiResult};

/// What a request asks of the sampler, and of the model's loading.
#[derive(Debug)]
pub struct Options {
    /// Fields of a request to llama-server.
    pub sampling: Map<String, Value>,
    /// The context that the request needs, in tokens; `None` is content with the default.
    pub context_tokens: Option<u32>,
}

#[derive(Clone, Copy)]
enum Kind {
    Integer,
    Number,
}

/// Ollama's name, llama-server's name, the kind, and Ollama's default where the two servers' defaults differ.
const NUMBERS: [(&str, &str, Kind, Option<f64>); 15] = [
    ("temperature", "temperature", Kind::Number, None),
    ("top_k", "top_k", Kind::Integer, None),
    ("top_p", "top_p", Kind::Number, Some(0.9)),
    ("min_p", "min_p", Kind::Number, Some(0.0)),
    ("typical_p", "typical_p", Kind::Number, None),
    ("seed", "seed", Kind::Integer, None),
    ("num_keep", "n_keep", Kind::Integer, Some(4.0)),
    ("num_predict", "n_predict", Kind::Integer, None),
    ("repeat_last_n", "repeat_last_n", Kind::Integer, None),
    ("repeat_penalty", "repeat_penalty", Kind::Number, None),
    ("presence_penalty", "presence_penalty", Kind::Number, None),
    ("frequency_penalty", "frequency_penalty", Kind::Number, None),
    ("mirostat", "mirostat", Kind::Integer, None),
    ("mirostat_tau", "mirostat_tau", Kind::Number, None),
    ("mirostat_eta", "mirostat_eta", Kind::Number, None),
];

impl Options {
    /// Translates a request's options. Names that are not known are ignored, as Ollama does: what is about loading
    /// (`num_gpu`, `num_thread`) is decided when the server is started.
    ///
    /// # Errors
    /// 400 when a value is of the wrong type.
    pub fn translate(options: &Map<String, Value>) -> ApiResult<Self> {
        let mut sampling = Map::new();
        for (name, translated, kind, default) in NUMBERS {
            let value = match options.get(name).filter(|value| !value.is_null()) {
                Some(value) => number(name, value, kind)?,
                None => match default {
                    Some(default) => in_kind(default, kind),
                    None => continue,
                },
            };
            sampling.insert(translated.to_owned(), value);
        }
        let context_tokens = match options.get("num_ctx").filter(|value| !value.is_null()) {
            None => None,
            Some(value) => {
                let tokens = number("num_ctx", value, Kind::Integer)?.as_i64();
                let tokens = tokens.and_then(|tokens| u32::try_from(tokens).ok()).filter(|&tokens| tokens > 0);
                Some(tokens.ok_or_else(|| ApiError::bad_request("option \"num_ctx\" must be a number of tokens"))?)
            }
        };
        // Ollama writes "no limit" as any number below 1, llama-server as -1 alone.
        limit_below_one(&mut sampling, "n_predict", -1);
        if sampling.get("repeat_last_n").and_then(Value::as_i64).is_some_and(|tokens| tokens < 0) {
            sampling.insert("repeat_last_n".to_owned(), json!(context_tokens.unwrap_or(i32::MAX as u32)));
        }
        if let Some(stop) = options.get("stop").filter(|stop| !stop.is_null()) {
            sampling.insert("stop".to_owned(), stop_texts(stop)?);
        }
        Ok(Self { sampling, context_tokens })
    }
}

fn limit_below_one(sampling: &mut Map<String, Value>, name: &str, unlimited: i64) {
    if sampling.get(name).and_then(Value::as_i64).is_some_and(|limit| limit < 1) {
        sampling.insert(name.to_owned(), json!(unlimited));
    }
}

fn number(name: &str, value: &Value, kind: Kind) -> ApiResult<Value> {
    let wanted = match kind {
        Kind::Integer => "integer",
        Kind::Number => "number",
    };
    let number =
        value.as_f64().ok_or_else(|| ApiError::bad_request(format!("option {name:?} must be of type {wanted}")))?;
    // Kept as it came where possible: a seed may have more digits than a float holds.
    Ok(match (kind, value.as_i64()) {
        (Kind::Integer, Some(integer)) => json!(integer),
        _ => in_kind(number, kind),
    })
}

fn in_kind(number: f64, kind: Kind) -> Value {
    match kind {
        // JSON from JavaScript and Go writes whole numbers as floats now and then.
        Kind::Integer => json!(number as i64),
        Kind::Number => json!(number),
    }
}

fn stop_texts(stop: &Value) -> ApiResult<Value> {
    match stop {
        Value::String(text) => Ok(json!([text])),
        Value::Array(texts) if texts.iter().all(Value::is_string) => Ok(stop.clone()),
        _ => Err(ApiError::bad_request("option \"stop\" must be of an array of strings")),
    }
}

/// The fields that constrain an answer to Ollama's `format`: `"json"`, a JSON schema, or nothing.
///
/// # Errors
/// 400 for anything else.
pub fn response_schema(format: Option<&Value>) -> ApiResult<Option<Value>> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "json" => Ok(Some(json!({"type": "object"}))),
        Some(schema @ Value::Object(_)) => Ok(Some(schema.clone())),
        Some(other) => {
            Err(ApiError::bad_request(format!("invalid format: {other}; expected \"json\" or a JSON Schema object")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(options: Value) -> ApiResult<Options> {
        Options::translate(options.as_object().unwrap())
    }

    #[test]
    fn nothing_set_is_ollamas_defaults() {
        let options = translate(json!({})).unwrap();
        let expected = json!({"top_p": 0.9, "min_p": 0.0, "n_keep": 4});
        assert_eq!(Value::Object(options.sampling), expected);
        assert_eq!(options.context_tokens, None);
    }

    #[test]
    fn everything_set() {
        let options = translate(json!({
            "temperature": 0, "top_k": 20.0, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "seed": 9007199254740993_i64,
            "num_keep": 0, "num_predict": -2, "num_ctx": 1024, "repeat_last_n": -1, "repeat_penalty": 1.2,
            "presence_penalty": 1.5, "frequency_penalty": 1.0, "mirostat": 1, "mirostat_tau": 0.8, "mirostat_eta": 0.6,
            "stop": ["\n"], "numa": false, "num_gpu": 1,
        }))
        .unwrap();
        let expected = json!({
            "temperature": 0.0, "top_k": 20, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "seed": 9007199254740993_i64,
            "n_keep": 0, "n_predict": -1, "repeat_last_n": 1024, "repeat_penalty": 1.2, "presence_penalty": 1.5,
            "frequency_penalty": 1.0, "mirostat": 1, "mirostat_tau": 0.8, "mirostat_eta": 0.6, "stop": ["\n"],
        });
        assert_eq!(Value::Object(options.sampling), expected);
        assert_eq!(options.context_tokens, Some(1024));
    }

    #[test]
    fn wrong_types_are_named() {
        for (options, word) in [
            (json!({"top_k": "many"}), "top_k"),
            (json!({"temperature": true}), "temperature"),
            (json!({"stop": [1]}), "stop"),
            (json!({"num_ctx": 0}), "num_ctx"),
            (json!({"num_ctx": -5}), "num_ctx"),
        ] {
            let error = translate(options).unwrap_err();
            assert!(error.message.contains(word) && error.status == 400, "{error:?}");
        }
    }

    #[test]
    fn formats() {
        assert_eq!(response_schema(None).unwrap(), None);
        assert_eq!(response_schema(Some(&json!(""))).unwrap(), None);
        assert_eq!(response_schema(Some(&json!("json"))).unwrap(), Some(json!({"type": "object"})));
        let schema = json!({"type": "integer"});
        assert_eq!(response_schema(Some(&schema)).unwrap(), Some(schema));
        assert!(response_schema(Some(&json!("yaml"))).is_err());
    }
}
