//! The vectors of a layer that its inputs may have been scaled with: the weights of its norms, and their biases.

use super::floats::Source;

/// A layer's vectors that are looked at, at most.
const COUNT_MAX: usize = 8;

/// Which of a model's norms: layers have them by the same names.
pub type NormName = usize;

/// One elementwise scaling: `x * gain + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    pub name: NormName,
    gain: Vec<f32>,
    /// Empty when there is none.
    bias: Vec<f32>,
}

/// All of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Norms(Vec<Norm>);

/// The names of norms, by number.
#[derive(Debug, Default)]
pub struct NormNames(Vec<String>);

impl NormNames {
    /// The number of a name; norms that usually come right before a router have the lowest ones.
    fn number(&mut self, name: &str) -> NormName {
        self.0.iter().position(|known| known == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }
}

impl Norms {
    /// Reads all vectors of a layer that have `width` elements and are no bias.
    pub fn read(source: &Source<'_>, layer: u32, width: usize, names: &mut NormNames) -> Self {
        let is_vector = |shape: [u64; 4]| shape[0] == width as u64 && shape[1..] == [1, 1, 1];
        let mut norms = Vec::new();
        for tensor in source.of_layer(layer).filter(|tensor| is_vector(tensor.shape)) {
            let part = tensor.name.splitn(3, '.').nth(2).unwrap_or_default();
            if part.ends_with("bias") || norms.len() == COUNT_MAX {
                continue;
            }
            let Some(gain) = source.vector(tensor) else { continue };
            let stem = part.strip_suffix(".weight").unwrap_or(part);
            let bias = source.find(&format!("blk.{layer}.{stem}.bias")).filter(|bias| is_vector(bias.shape));
            let bias = bias.and_then(|bias| source.vector(bias)).unwrap_or_default();
            norms.push(Norm { name: names.number(part), gain, bias });
        }
        norms.sort_by_key(|norm| norm.name);
        Self(norms)
    }

    /// One of them.
    pub fn get(&self, name: NormName) -> Option<&Norm> {
        self.0.iter().find(|norm| norm.name == name)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = NormName> + '_ {
        self.0.iter().map(|norm| norm.name)
    }

    #[cfg(test)]
    pub fn of(norms: Vec<Norm>) -> Self {
        Self(norms)
    }
}

impl Norm {
    #[cfg(test)]
    pub fn new(name: NormName, gain: Vec<f32>, bias: Vec<f32>) -> Self {
        Self { name, gain, bias }
    }

    /// Scales.
    pub fn put_in(&self, values: &mut [f32]) {
        values.iter_mut().zip(&self.gain).for_each(|(value, gain)| *value *= gain);
        values.iter_mut().zip(&self.bias).for_each(|(value, bias)| *value += bias);
    }

    /// Undoes [`Self::put_in`]; what was scaled by zero is lost and stays zero.
    pub fn take_out(&self, values: &mut [f32]) {
        values.iter_mut().zip(&self.bias).for_each(|(value, bias)| *value -= bias);
        for (value, gain) in values.iter_mut().zip(&self.gain) {
            *value = if *gain == 0.0 { 0.0 } else { *value / gain };
        }
    }
}

/// Scales values to a mean square of one.
pub fn normalise(values: &mut [f32]) {
    let scale = 1.0 / root_mean_square(values).max(f32::MIN_POSITIVE);
    values.iter_mut().for_each(|value| *value *= scale);
}

/// The root of the mean square.
pub fn root_mean_square(values: &[f32]) -> f32 {
    (values.iter().map(|value| value * value).sum::<f32>() / values.len().max(1) as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;
    use crate::gguf::Gguf;

    #[test]
    fn all_vectors_of_the_width_are_norms_with_their_biases() {
        let floats = |values: [f32; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        GgufWriter::new()
            .text("general.architecture", "moe")
            .tensor("blk.3.attn_norm.weight", 0, &[2], floats([2.0, 0.0]))
            .tensor("blk.3.attn_norm.bias", 0, &[2], floats([1.0, 3.0]))
            .tensor("blk.3.attn_output.bias", 0, &[2], floats([1.0, 3.0]))
            .tensor("blk.3.attn_q_norm.weight", 0, &[1], vec![0; 4])
            .tensor("blk.3.ffn_gate_inp.weight", 0, &[2, 3], vec![0; 24])
            .tensor("blk.3.ffn_gate_inp.scale", 0, &[2], floats([5.0, 7.0]))
            .write(&path);
        let gguf = Gguf::open(&[path]).unwrap();
        let mut names = NormNames::default();
        let norms = Norms::read(&Source::open(&gguf), 3, 2, &mut names);
        assert_eq!(names.0, ["attn_norm.weight", "ffn_gate_inp.scale"]);
        assert_eq!(norms.names().collect::<Vec<_>>(), [0, 1]);
        let mut values = [10.0, 10.0];
        norms.get(1).unwrap().put_in(&mut values);
        assert_eq!(values, [50.0, 70.0]);
        norms.get(0).unwrap().put_in(&mut values);
        assert_eq!(values, [101.0, 3.0]);
        norms.get(0).unwrap().take_out(&mut values);
        assert_eq!(values, [50.0, 0.0], "what a gain of zero has taken stays away");
        normalise(&mut values);
        assert!((root_mean_square(&values) - 1.0).abs() < 1e-6);
        let mut nothing = [0.0, 0.0];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
    }
}
