//! Pictures and sound of a request, which Ollama's clients send as base64 (`images`), in the form that llama-server takes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::serve::errors::{ApiError, ApiResult};

/// What a message says: its text alone, or the pictures and sounds and then the text, as Ollama orders them.
///
/// # Errors
/// 400 when one is no base64.
pub fn content(text: &str, images: Option<&[Value]>) -> ApiResult<Value> {
    let Some(images) = images.filter(|images| !images.is_empty()) else { return Ok(json!(text)) };
    let mut parts = Vec::new();
    for image in images {
        let data = base64_of(image)?;
        // Never as it is: llama-server would fetch what looks like an address.
        parts.push(match is_sound(image) {
            true => {
                json!({"type": "input_audio", "input_audio": {"data": format!("data:audio/unknown;base64,{data}")}})
            }
            false => json!({"type": "image_url", "image_url": {"url": format!("data:image/unknown;base64,{data}")}}),
        });
    }
    parts.push(json!({"type": "text", "text": text}));
    Ok(Value::Array(parts))
}

/// A prompt that is completed as text, with a marker where each picture is: at Ollama's `[img-0]` where the text has
/// that, else at the beginning.
///
/// # Errors
/// As [`content`].
pub fn prompt(text: &str, images: &[Value], marker: &str) -> ApiResult<Value> {
    let data = images.iter().map(base64_of).collect::<ApiResult<Vec<_>>>()?;
    // The marker is llama-server's secret, so a prompt cannot hold one of its own.
    let mut text = text.to_owned();
    for number in (0..images.len()).rev() {
        let place = format!("[img-{number}]");
        text = match text.contains(&place) {
            true => text.replacen(&place, marker, 1),
            false => format!("{marker}{text}"),
        };
    }
    Ok(json!({"prompt_string": text, "multimodal_data": data}))
}

/// The text of a message's content.
pub fn text_of(content: &Value) -> Option<&str> {
    let part = content.as_array().and_then(|parts| parts.iter().find(|part| part["type"] == "text"));
    content.as_str().or_else(|| part?["text"].as_str())
}

/// Replaces the text of a message's content, and leaves its pictures.
pub fn set_text(content: &mut Value, text: &str) {
    match content.as_array_mut().and_then(|parts| parts.iter_mut().find(|part| part["type"] == "text")) {
        Some(part) => part["text"] = json!(text),
        None => *content = json!(text),
    }
}

/// Whether it is sound, by how WAV, MP3 and FLAC begin, which are what llama-server hears.
pub fn is_sound(image: &Value) -> bool {
    // 16 characters are the 12 bytes that tell.
    let start = image.as_str().and_then(|text| STANDARD.decode(text.get(..16)?).ok()).unwrap_or_default();
    let is_wave = start.starts_with(b"RIFF") && start.ends_with(b"WAVE");
    let is_mp3 = start.starts_with(b"ID3") || matches!(start[..], [0xff, second, ..] if second & 0xe0 == 0xe0);
    is_wave || is_mp3 || start.starts_with(b"fLaC")
}

fn base64_of(image: &Value) -> ApiResult<&str> {
    let text = image.as_str().unwrap_or_default();
    let is_valid = !text.is_empty() && STANDARD.decode(text).is_ok();
    is_valid
        .then_some(text)
        .ok_or_else(|| ApiError::bad_request("an image is no base64: send the file's bytes so encoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_before_the_text() {
        let images = [json!("aGk=")];
        let mut both = content("what is it?", Some(&images)).unwrap();
        assert_eq!(both[0]["image_url"]["url"], "data:image/unknown;base64,aGk=");
        assert_eq!(text_of(&both), Some("what is it?"));
        set_text(&mut both, "it?");
        assert_eq!(both[1], json!({"type": "text", "text": "it?"}));
        let mut text = content("text", Some(&[])).unwrap();
        assert_eq!((&text, text_of(&text)), (&json!("text"), Some("text")));
        set_text(&mut text, "x");
        assert_eq!(text, "x");
    }

    #[test]
    fn sound_is_told_from_pictures() {
        let encoded = |bytes: &[u8]| json!(STANDARD.encode(bytes));
        for sound in
            [&b"RIFF\x24\x08\0\0WAVEfmt "[..], b"ID3\x04 and twelve", b"\xff\xfb\x90 and twelve", b"fLaC and twelve"]
        {
            assert!(is_sound(&encoded(sound)), "{sound:?}");
            let part = &content("?", Some(&[encoded(sound)])).unwrap()[0];
            assert!(part["input_audio"]["data"].as_str().unwrap().starts_with("data:audio/unknown;base64,"), "{part}");
        }
        for picture in
            [&b"\x89PNG\r\n\x1a\n and more"[..], b"\xff\xd8\xff\xe0 of a JPEG", b"RIFF\x24\x08\0\0WEBPVP8 ", b"ID3"]
        {
            assert!(!is_sound(&encoded(picture)), "{picture:?}");
        }
    }

    #[test]
    fn addresses_are_no_pictures() {
        for image in [json!("http://169.254.169.254/"), json!("file:///etc/passwd"), json!(""), json!(7), json!(null)] {
            assert!(content("?", Some(std::slice::from_ref(&image))).is_err(), "{image}");
        }
    }

    #[test]
    fn a_prompt_says_where_its_pictures_are() {
        let images = [json!("aGk="), json!("aG8=")];
        let text = |prompt_text: &str| prompt(prompt_text, &images, "<m>").unwrap()["prompt_string"].clone();
        assert_eq!(text("x"), "<m><m>x");
        assert_eq!(text("a [img-1] b [img-0]"), "a <m> b <m>");
        assert_eq!(text("a [img-0]"), "<m>a <m>");
    }
}
