//! Every key-value pair of a file, as JSON: for programs that show a model. The planner needs only [`super::hyper`].

use std::path::Path;

use serde_json::{Map, Value};

use super::reader::{Reader, STRING_BYTES_MIN, quoted};
use crate::error::Result;

/// As [`super::key_values`], of the first bytes of a file.
pub(super) fn read(path: &Path, bytes: &[u8], size_bytes: u64, array_elements_max: u64) -> Result<Map<String, Value>> {
    let mut reader = Reader::new(path, bytes, size_bytes);
    super::check_magic_and_version(&mut reader)?;
    reader.take_u64("the number of tensors")?;
    let pair_count = reader.take_u64("the number of key-value pairs")?;
    let mut pairs = Map::new();
    for _ in 0..pair_count {
        let key = reader.take_string("a key")?;
        let kind = reader.take_u32("the type of a value")?;
        let value = match kind {
            ARRAY => read_array(&mut reader, key, array_elements_max)?,
            _ => read_scalar(&mut reader, kind, key)?,
        };
        pairs.insert(text(key), value);
    }
    Ok(pairs)
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

fn read_array(reader: &mut Reader<'_>, key: &[u8], elements_max: u64) -> Result<Value> {
    let kind = reader.take_u32("the type of a value")?;
    let count = reader.take_u64("the length of an array")?;
    if kind == ARRAY {
        return Err(reader.malformed(format_args!("key {} is an array of arrays", quoted(key))));
    }
    reader.expect_room(count, if kind == TEXT { STRING_BYTES_MIN } else { 1 }, "an array")?;
    let mut elements = Vec::new();
    for _ in 0..count {
        let element = read_scalar(reader, kind, key)?;
        if count <= elements_max {
            elements.push(element);
        }
    }
    Ok(if count <= elements_max { Value::Array(elements) } else { Value::Null })
}

fn read_scalar(reader: &mut Reader<'_>, kind: u32, key: &[u8]) -> Result<Value> {
    /// The bytes of one number of this width.
    fn bytes<const WIDTH: usize>(reader: &mut Reader<'_>) -> Result<[u8; WIDTH]> {
        let mut bytes = [0; WIDTH];
        bytes.copy_from_slice(reader.take(WIDTH as u64, "a value")?);
        Ok(bytes)
    }
    Ok(match kind {
        0 => u8::from_le_bytes(bytes(reader)?).into(),
        1 => i8::from_le_bytes(bytes(reader)?).into(),
        2 => u16::from_le_bytes(bytes(reader)?).into(),
        3 => i16::from_le_bytes(bytes(reader)?).into(),
        4 => u32::from_le_bytes(bytes(reader)?).into(),
        5 => i32::from_le_bytes(bytes(reader)?).into(),
        6 => f32::from_le_bytes(bytes(reader)?).into(),
        7 => (u8::from_le_bytes(bytes(reader)?) != 0).into(),
        TEXT => text(reader.take_string("a text value")?).into(),
        10 => u64::from_le_bytes(bytes(reader)?).into(),
        11 => i64::from_le_bytes(bytes(reader)?).into(),
        12 => f64::from_le_bytes(bytes(reader)?).into(),
        unknown => {
            return Err(reader.malformed(format_args!("key {} has the unknown value type {unknown}", quoted(key))));
        }
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::common::gguf_writer::{GgufWriter, encoded_string};

    fn values(writer: &GgufWriter) -> Result<Map<String, Value>> {
        read(Path::new("x.gguf"), &writer.bytes(), writer.bytes().len() as u64, 3)
    }

    #[test]
    fn every_kind_of_value() {
        let texts: Vec<u8> = ["a", "é"].iter().flat_map(|text| encoded_string(text)).collect();
        let writer = GgufWriter::new()
            .u32("layers", 7)
            .pair("signed", 5, &(-3_i32).to_le_bytes())
            .pair("half", 6, &0.5_f32.to_le_bytes())
            .pair("odd", 12, &f64::NAN.to_le_bytes())
            .pair("flag", 7, &[1])
            .text("name", "Tiny")
            .pair("broken", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])
            .array("texts", 8, 2, &texts)
            .array("long", 0, 4, &[1, 2, 3, 4])
            .zeros("a", 0, &[4]);
        let expected = json!({
            "layers": 7, "signed": -3, "half": 0.5, "odd": null, "flag": true, "name": "Tiny", "broken": "\u{fffd}",
            "texts": ["a", "é"], "long": null,
        });
        assert_eq!(Value::Object(values(&writer).unwrap()), expected);
    }

    #[test]
    fn what_cannot_be_trusted_is_refused() {
        for writer in [
            GgufWriter::new().pair("k", 13, &[0]),
            GgufWriter::new().array("k", 9, 1, &[0; 16]),
            GgufWriter::new().array("k", 0, u64::MAX, &[]),
            GgufWriter::new().array("k", 8, 1 << 40, &[]),
        ] {
            assert!(values(&writer).is_err());
        }
    }
}
