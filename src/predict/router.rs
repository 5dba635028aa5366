//! Router look-ahead: which experts the next layer's router would choose for this layer's input.
//!
//! The residual stream changes little from one layer to the next, so the next router, applied one layer early, names most of
//! the experts that it will name when its turn comes. Its input is normalised with weights of its layer; those of both layers
//! are known, so this layer's are taken out and the next one's put in.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::gguf::Gguf;

/// A layer's router, made to be applied to the input of the expert layer before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// One row for each expert.
    weights: Vec<f32>,
    /// Elements of a row.
    width: usize,
    /// Added to the logits; empty when there is none.
    logit_bias: Vec<f32>,
    /// Added to the sigmoid of the logits, by models that choose by that; empty when there is none.
    choice_bias: Vec<f32>,
    /// Experts that a token uses.
    used: usize,
}

impl Router {
    /// Elements that an input has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The experts that each of the inputs (rows of [`Self::width`] elements) would be sent to, those that most rows agree on
    /// first, then the surest.
    pub fn choose<'a>(&self, inputs: &[f32], choice: &'a mut Choice) -> &'a [usize] {
        let Choice { votes, ranked, experts: chosen } = choice;
        let count = self.weights.len() / self.width;
        votes.clear();
        votes.resize(count, (0, f32::NEG_INFINITY));
        for input in inputs.chunks_exact(self.width) {
            ranked.clear();
            ranked.extend(self.weights.chunks_exact(self.width).map(|row| dot(row, input)).enumerate());
            for (expert, score) in ranked.iter_mut() {
                *score += self.logit_bias.get(*expert).unwrap_or(&0.0);
                if let Some(bias) = self.choice_bias.get(*expert) {
                    *score = 1.0 / (1.0 + (-*score).exp()) + bias;
                }
            }
            ranked.sort_by(|one, other| other.1.total_cmp(&one.1));
            for &(expert, score) in ranked.iter().take(self.used) {
                let (rows, best) = &mut votes[expert];
                *rows += 1;
                *best = best.max(score);
            }
        }
        chosen.clear();
        chosen.extend((0..count).filter(|&expert| votes[expert].0 > 0));
        chosen.sort_by(|&one, &other| {
            let ((one_rows, one_score), (other_rows, other_score)) = (votes[one], votes[other]);
            other_rows.cmp(&one_rows).then(other_score.total_cmp(&one_score))
        });
        chosen
    }
}

/// What [`Router::choose`] works with, kept from one use to the next.
#[derive(Debug, Default)]
pub struct Choice {
    /// By expert: the rows that want it, and its best score among them.
    votes: Vec<(usize, f32)>,
    /// The experts with their scores for one row.
    ranked: Vec<(usize, f32)>,
    experts: Vec<usize>,
}

/// Sums in lanes, which compilers turn into vector instructions.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (one_chunks, other_chunks) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest: f32 = one_chunks.remainder().iter().zip(other_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in one_chunks.zip(other_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Reads the routers of a model from its files: for each of the expert layers given, in order, the router of the next one made
/// for its input. `None` for the last, and where the file has none in a form that is understood.
pub fn read_routers(gguf: &Gguf, layers: &[u32]) -> Vec<Option<Router>> {
    let files: Vec<Option<File>> = gguf.files().iter().map(|file| File::open(&file.path).ok()).collect();
    let read = |layer: u32, part: &str| read_floats(gguf, &files, &format!("blk.{layer}.{part}"));
    let norm = |layer: u32| read(layer, "ffn_norm.weight").or_else(|| read(layer, "post_attention_norm.weight"));
    let router = |this: u32, next: u32| -> Option<Router> {
        let mut weights = read(next, "ffn_gate_inp.weight")?;
        let width = gguf.hyper_parameters().embedding_length as usize;
        let used = gguf.hyper_parameters().expert_used_count as usize;
        if width == 0 || used == 0 || weights.is_empty() || weights.len() % width != 0 {
            return None;
        }
        if let (Some(this), Some(next)) = (norm(this), norm(next)) {
            if this.len() == width && next.len() == width {
                for row in weights.chunks_exact_mut(width) {
                    for ((weight, this), next) in row.iter_mut().zip(&this).zip(&next) {
                        *weight *= if *this == 0.0 { 1.0 } else { next / this };
                    }
                }
            }
        }
        let logit_bias = read(next, "ffn_gate_inp.bias").unwrap_or_default();
        let choice_bias = read(next, "exp_probs_b.bias").unwrap_or_default();
        Some(Router { weights, width, logit_bias, choice_bias, used })
    };
    let next = layers.iter().skip(1).map(Some).chain([None]);
    layers.iter().zip(next).map(|(&this, next)| next.and_then(|&next| router(this, next))).collect()
}

/// A tensor's elements, when it exists and is stored as floats.
fn read_floats(gguf: &Gguf, files: &[Option<File>], name: &str) -> Option<Vec<f32>> {
    const FLOATS_MAX: u64 = 1 << 30;
    let tensor = &gguf.tensors()[gguf.find(name)?];
    let file = files.get(tensor.file)?.as_ref()?;
    if tensor.size_bytes > FLOATS_MAX {
        return None;
    }
    let decode: fn(&[u8]) -> f32 = match tensor.ggml_type.name() {
        "f32" => |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        "bf16" => |bytes| f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
        "f16" => |bytes| half_to_single(u16::from_le_bytes([bytes[0], bytes[1]])),
        _ => return None,
    };
    let mut bytes = vec![0; tensor.size_bytes as usize];
    file.read_exact_at(&mut bytes, tensor.offset).ok()?;
    Some(bytes.chunks_exact(tensor.ggml_type.block_bytes() as usize).map(decode).collect())
}

/// IEEE 754 binary16 as binary32, exact.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2_f32.powi(-24),
        0x1f if fraction == 0.0 => f32::INFINITY,
        0x1f => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_directory::TestDirectory;
    use crate::gguf::test_writer::GgufWriter;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn router(logit_bias: &[f32], choice_bias: &[f32]) -> Router {
        let weights = vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0];
        Router { weights, width: 2, logit_bias: logit_bias.into(), choice_bias: choice_bias.into(), used: 2 }
    }

    #[test]
    fn the_highest_scores_are_chosen_and_agreement_comes_first() {
        let mut choice = Choice::default();
        assert_eq!(router(&[], &[]).choose(&[3.0, 1.0], &mut choice), [0, 1]);
        let biased = router(&[0.0, 0.0, 9.0], &[]);
        assert_eq!(biased.choose(&[3.0, 1.0], &mut choice), [2, 0], "a bias counts");
        let by_sigmoid = router(&[], &[0.0, 2.0, 1.5]);
        assert_eq!(by_sigmoid.choose(&[3.0, 1.0], &mut choice), [1, 2], "after the sigmoid another one does");
        assert_eq!(router(&[], &[]).choose(&[3.0, 1.0, -5.0, 1.0], &mut choice), [1, 2, 0], "both rows want 1");
    }

    #[test]
    fn routers_are_read_with_the_norms_of_both_layers() {
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        GgufWriter::new()
            .text("general.architecture", "moe")
            .u32("moe.embedding_length", 2)
            .u32("moe.expert_used_count", 1)
            .tensor("blk.0.ffn_norm.weight", 0, &[2], floats(&[2.0, 4.0]))
            .tensor("blk.1.ffn_norm.weight", 0, &[2], floats(&[1.0, 1.0]))
            .tensor("blk.1.ffn_gate_inp.weight", 0, &[2, 3], floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
            .tensor("blk.2.ffn_gate_inp.weight", 8, &[32, 1], vec![0; 34])
            .write(&path);
        let gguf = Gguf::open(&[path]).unwrap();
        let routers = read_routers(&gguf, &[0, 1, 2]);
        assert_eq!(routers[0].as_ref().unwrap().weights, [0.5, 0.5, 1.5, 1.0, 2.5, 1.5]);
        assert_eq!(routers[1..], [None, None], "a quantised router is not understood, and nothing follows the last");
    }

    #[test]
    fn halves_are_exact() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2_f32.powi(-24)), (0x7bff, 65504.0), (0x0000, 0.0)]
        {
            assert_eq!(half_to_single(bits), value);
        }
        assert!(half_to_single(0x7c01).is_nan());
    }

    #[test]
    fn the_dot_product_counts_every_element() {
        for length in 0..40 {
            let ones = vec![1.0; length];
            assert_eq!(dot(&ones, &ones), length as f32);
        }
    }
}
