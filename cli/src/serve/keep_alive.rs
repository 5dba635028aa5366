//! How long a model stays loaded after a request: Ollama's `keep_alive`, as a number of seconds or a text such as `5m`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// How long to keep a model that nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This long; zero unloads it as soon as it is idle.
    For(Duration),
    /// For as long as the server runs.
    Forever,
}

impl KeepAlive {
    /// Reads `90` (seconds), `1h30m`, `1.5h`, `300ms`; anything negative is forever.
    ///
    /// # Errors
    /// A sentence that says what may be written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<f64>() {
            return Self::from_seconds(seconds);
        }
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let seconds = duration_seconds(digits)
            .ok_or_else(|| format!("'{text}' is not a duration; write 5m, 1h30m, 90 (seconds), or -1 for ever"))?;
        Self::from_seconds(if negative { -seconds } else { seconds })
    }

    fn from_seconds(seconds: f64) -> Result<Self, String> {
        if seconds.is_nan() {
            return Err("NaN is not a duration".to_owned());
        }
        if seconds.is_sign_negative() && seconds != 0.0 {
            return Ok(Self::Forever);
        }
        // Longer than an `Instant` reaches is as good as for ever.
        const SECONDS_MAX: f64 = 100.0 * 365.25 * 86400.0;
        Ok(if seconds > SECONDS_MAX { Self::Forever } else { Self::For(Duration::from_secs_f64(seconds)) })
    }
}

/// Seconds of a sequence of numbers with units, as Go writes durations.
fn duration_seconds(mut text: &str) -> Option<f64> {
    if text.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(digits);
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(letters);
        let unit_seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit_seconds;
        text = rest;
    }
    Some(seconds)
}

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match Value::deserialize(deserializer)? {
            Value::Number(number) => Self::from_seconds(number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => Self::parse(&text),
            other => Err(format!("{other} is not a duration; write 5m, 1h30m, 90 (seconds), or -1 for ever")),
        };
        parsed.map_err(|problem| serde::de::Error::custom(format!("keep_alive: {problem}")))
    }
}

impl std::str::FromStr for KeepAlive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_seconds_and_texts_have_units() {
        let seconds = |text: &str| match KeepAlive::parse(text) {
            Ok(KeepAlive::For(duration)) => duration.as_secs_f64(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(seconds("0"), 0.0);
        assert_eq!(seconds("90"), 90.0);
        assert_eq!(seconds("5m"), 300.0);
        assert_eq!(seconds("1h30m"), 5400.0);
        assert_eq!(seconds("1.5h"), 5400.0);
        assert_eq!(seconds("300ms"), 0.3);
        for forever in ["-1", "-1m", "-0.5s", "1e300"] {
            assert_eq!(KeepAlive::parse(forever), Ok(KeepAlive::Forever), "{forever}");
        }
        for wrong in ["", "m", "5", "5x", "1h30", "NaN", "soon", "5m-3s", "1.2.3s", "-"] {
            assert_eq!(KeepAlive::parse(wrong).is_ok(), wrong == "5", "{wrong}");
        }
    }

    #[test]
    fn json_of_either_kind() {
        assert_eq!(serde_json::from_str::<KeepAlive>("-1").unwrap(), KeepAlive::Forever);
        assert_eq!(serde_json::from_str::<KeepAlive>("\"10s\"").unwrap(), KeepAlive::For(Duration::from_secs(10)));
        assert!(serde_json::from_str::<KeepAlive>("true").is_err());
    }
}
