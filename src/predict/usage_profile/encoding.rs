//! The usage profile as bytes.
//!
//! All numbers are little-endian base-128 varints, after a magic word and the version:
//!
//! ```text
//! "HYPHABIT" version expert_count layer_count
//! for each layer: number tokens has_pairs counts: uses, and if it has pairs: next_layer, next_token
//! the 64-bit FNV-1a hash of all of this, in 8 bytes
//! ```
//!
//! Most counts are 0, and most others small: a run of zeros is written as 0 and its length, any other count as itself.

use super::{Layer, UsageProfile};
use crate::fnv::Fnv;

const MAGIC: &[u8] = b"HYPHABIT";
const VERSION: u64 = 1;
const HASH_BYTES: usize = 8;

/// More layers than this are damage, not a model.
const LAYERS_MAX: u64 = 1 << 12;

/// The usage profile as bytes.
pub(super) fn encode(usage_profile: &UsageProfile) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for number in [VERSION, usage_profile.expert_count as u64, usage_profile.layers.len() as u64] {
        put(&mut bytes, number);
    }
    for layer in &usage_profile.layers {
        let has_pairs = !layer.next_layer.is_empty();
        for number in [u64::from(layer.number), u64::from(layer.tokens), u64::from(has_pairs)] {
            put(&mut bytes, number);
        }
        for counts in [&layer.uses.raw, &layer.next_layer, &layer.next_token] {
            put_counts(&mut bytes, counts);
        }
    }
    let hash = Fnv::of(&bytes);
    bytes.extend(hash.to_le_bytes());
    bytes
}

/// The usage profile of a model whose layers have at most `expert_count` experts. The error says what is wrong with the bytes.
pub(super) fn decode(bytes: &[u8], expert_count: usize) -> Result<UsageProfile, &'static str> {
    let (contents, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or("it is cut short")?;
    let mut rest = contents.strip_prefix(MAGIC).ok_or("it is of another kind")?;
    if Fnv::of(contents) != u64::from_le_bytes(*hash) {
        return Err("its checksum is wrong");
    }
    if get(&mut rest)? != VERSION {
        return Err("it is of another version");
    }
    if get(&mut rest)? != expert_count as u64 {
        return Err("it is of a model with another number of experts");
    }
    let layer_count = get(&mut rest)?;
    if layer_count > LAYERS_MAX {
        return Err("it has too many layers");
    }
    let layers = (0..layer_count).map(|_| get_layer(&mut rest, expert_count)).collect::<Result<_, _>>()?;
    Ok(UsageProfile::of_layers(expert_count, layers))
}

fn get_layer(rest: &mut &[u8], expert_count: usize) -> Result<Layer, &'static str> {
    const DAMAGED: &str = "a number in it is too large";
    let number = u32::try_from(get(rest)?).map_err(|_| DAMAGED)?;
    let tokens = u16::try_from(get(rest)?).map_err(|_| DAMAGED)?;
    let pairs = if get(rest)? == 0 { 0 } else { expert_count * expert_count };
    let mut counts = |count| get_counts(rest, count);
    Ok(Layer {
        number,
        tokens,
        uses: counts(expert_count)?.into(),
        next_layer: counts(pairs)?,
        next_token: counts(pairs)?,
    })
}

fn put_counts(bytes: &mut Vec<u8>, counts: &[u16]) {
    for run in counts.chunk_by(|one, other| one == other) {
        match run[0] {
            0 => {
                bytes.push(0);
                put(bytes, run.len() as u64);
            }
            count => run.iter().for_each(|_| put(bytes, u64::from(count))),
        }
    }
}

fn get_counts(rest: &mut &[u8], count: usize) -> Result<Vec<u16>, &'static str> {
    let mut counts = Vec::with_capacity(count);
    while counts.len() < count {
        match get(rest)? {
            0 => {
                let run = get(rest)?;
                if run > (count - counts.len()) as u64 {
                    return Err("it has too many counts");
                }
                counts.resize(counts.len() + run as usize, 0);
            }
            number => counts.push(u16::try_from(number).map_err(|_| "a count in it is too large")?),
        }
    }
    Ok(counts)
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn get(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or("it is cut short")?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number in it is too large")
}
