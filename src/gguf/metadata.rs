//! The key-value section of a header.
//!
//! Only what is needed later is kept: integers (of integer arrays the maximum, because some architectures give a
//! hyper-parameter per layer) and text. Everything else, the vocabulary above all, is walked over.

use std::collections::HashMap;
use std::path::Path;

use super::reader::{Reader, STRING_BYTES_MIN, malformed, quoted};
use crate::error::{Error, Result};

/// Bytes that a pair takes at least: an empty key, a type and a value of one byte.
const PAIR_BYTES_MIN: u64 = STRING_BYTES_MIN + 4 + 1;

/// Longest integer array whose maximum is taken. One element per layer is far below it; the lists of token types and
/// merges are far above, and nothing asks for their maximum.
const LAYERS_MAX: u64 = 1 << 16;

/// The pairs of one file, borrowed from its bytes.
pub(super) struct Metadata<'a> {
    path: &'a Path,
    values: HashMap<&'a [u8], Value<'a>>,
}

#[derive(Clone, Copy)]
enum Value<'a> {
    /// Wide enough for both signed and unsigned 64-bit numbers.
    Integer(i128),
    Text(&'a [u8]),
    /// Present, but of a kind that nothing here asks for.
    Other,
}

impl<'a> Metadata<'a> {
    /// Reads `pair_count` pairs.
    pub(super) fn read(reader: &mut Reader<'a>, pair_count: u64) -> Result<Self> {
        reader.expect_room(pair_count, PAIR_BYTES_MIN, "the key-value section")?;
        let mut values = HashMap::new();
        for _ in 0..pair_count {
            let key = reader.take_string("a key")?;
            if key.is_empty() {
                return Err(reader.malformed("a key is empty"));
            }
            let value = read_value(reader, key)?;
            if values.insert(key, value).is_some() {
                return Err(reader.malformed(format_args!("key {} occurs twice", quoted(key))));
            }
        }
        Ok(Self { path: reader.path(), values })
    }

    /// A count or length: `None` when the key is absent, an error when it is negative or not an integer.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key.as_bytes()) {
            None => Ok(None),
            Some(Value::Integer(value)) => match u64::try_from(*value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(malformed(self.path, format_args!("key '{}' is {value}", key.escape_debug()))),
            },
            Some(Value::Text(_) | Value::Other) => Err(self.wrong_kind(key, "an integer")),
        }
    }

    /// Text as it is stored: `None` when the key is absent, an error when it is something else.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a [u8]>> {
        match self.values.get(key.as_bytes()) {
            None => Ok(None),
            Some(Value::Text(bytes)) => Ok(Some(bytes)),
            Some(Value::Integer(_) | Value::Other) => Err(self.wrong_kind(key, "text")),
        }
    }

    fn wrong_kind(&self, key: &str, expected: &str) -> Error {
        malformed(self.path, format_args!("key {} is not {expected}", quoted(key.as_bytes())))
    }
}

/// The types of values; the numbers are the file's.
#[derive(Clone, Copy)]
enum Kind {
    /// An integer of a width in bytes.
    Unsigned(u64),
    Signed(u64),
    /// Not an integer, but of a fixed width in bytes: floats and booleans.
    Opaque(u64),
    Text,
    Array,
}

fn read_value<'a>(reader: &mut Reader<'a>, key: &[u8]) -> Result<Value<'a>> {
    match read_kind(reader, key)? {
        Kind::Text => Ok(Value::Text(reader.take_string("a text value")?)),
        Kind::Array => read_array(reader, key),
        kind @ (Kind::Unsigned(width) | Kind::Signed(width) | Kind::Opaque(width)) => {
            Ok(number(kind, reader.take(width, "a value")?))
        }
    }
}

fn read_array<'a>(reader: &mut Reader<'a>, key: &[u8]) -> Result<Value<'a>> {
    let kind = read_kind(reader, key)?;
    let count = reader.take_u64("the length of an array")?;
    match kind {
        // Nothing writes nested arrays and llama.cpp refuses them; refusing also bounds the depth of this parser.
        Kind::Array => Err(reader.malformed(format_args!("key {} is an array of arrays", quoted(key)))),
        Kind::Text => {
            reader.expect_room(count, STRING_BYTES_MIN, "an array of strings")?;
            for _ in 0..count {
                reader.take_string("a string of an array")?;
            }
            Ok(Value::Other)
        }
        Kind::Unsigned(width) | Kind::Signed(width) | Kind::Opaque(width) => {
            reader.expect_room(count, width, "an array")?;
            let elements = reader.take(count * width, "an array")?;
            Ok(if count <= LAYERS_MAX { largest(kind, elements, width) } else { Value::Other })
        }
    }
}

fn largest<'a>(kind: Kind, elements: &[u8], width: u64) -> Value<'a> {
    let integers = elements.chunks_exact(width as usize).map(|element| match number(kind, element) {
        Value::Integer(value) => Some(value),
        Value::Text(_) | Value::Other => None,
    });
    // `None` sorts below every number, so it is the maximum only when there is no integer at all.
    integers.max().flatten().map_or(Value::Other, Value::Integer)
}

fn number<'a>(kind: Kind, bytes: &[u8]) -> Value<'a> {
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = i128::from_le_bytes(wide);
    match kind {
        Kind::Unsigned(_) => Value::Integer(value),
        Kind::Signed(width) => {
            // Shifting up and back down copies the sign bit of the narrow number into all the bits above it.
            let unused_bits = 128 - 8 * width as u32;
            Value::Integer((value << unused_bits) >> unused_bits)
        }
        Kind::Opaque(_) | Kind::Text | Kind::Array => Value::Other,
    }
}

fn read_kind(reader: &mut Reader<'_>, key: &[u8]) -> Result<Kind> {
    match reader.take_u32("the type of a value")? {
        0 => Ok(Kind::Unsigned(1)),
        1 => Ok(Kind::Signed(1)),
        2 => Ok(Kind::Unsigned(2)),
        3 => Ok(Kind::Signed(2)),
        4 => Ok(Kind::Unsigned(4)),
        5 => Ok(Kind::Signed(4)),
        6 => Ok(Kind::Opaque(4)),
        7 => Ok(Kind::Opaque(1)),
        8 => Ok(Kind::Text),
        9 => Ok(Kind::Array),
        10 => Ok(Kind::Unsigned(8)),
        11 => Ok(Kind::Signed(8)),
        12 => Ok(Kind::Opaque(8)),
        unknown => Err(reader.malformed(format_args!("key {} has the unknown value type {unknown}", quoted(key)))),
    }
}
