//! Where the host keeps a tensor, as far as it knows when it asks for a plan.

use crate::gguf::{Gguf, layer_of};

/// Where the host keeps a tensor that is not streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In RAM: it can be streamed instead.
    Ram,
    /// On a device, by the host's or its user's choice.
    Device,
    /// On a device of another machine, likewise.
    Remote,
    /// Nowhere: the tensor is in the file, but the host does not load it.
    Absent,
    /// Nobody knows, and it is probably not loaded. It counts as no memory, and is streamed if the host binds it.
    Spare,
}

/// Where tensors are of which the host says nothing: in RAM, but for layers that draft the tokens after the next one (MTP), which most
/// runs do not load.
pub fn usual_place(gguf: &Gguf) -> impl Fn(usize) -> Place + '_ {
    let hyper = gguf.hyper_parameters();
    let first_draft = hyper.block_count.saturating_sub(hyper.nextn_predict_layers);
    let layer = |tensor: usize| layer_of(&gguf.tensors()[tensor].name).map(u64::from);
    // A file may hold nothing but such layers; then they are what is loaded.
    let has_others = (0..gguf.tensors().len()).any(|tensor| layer(tensor).is_some_and(|layer| layer < first_draft));
    move |tensor| match layer(tensor) {
        Some(layer) if has_others && layer >= first_draft => Place::Spare,
        _ => Place::Ram,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;

    fn places(layers: &[u32], drafts: u32) -> Vec<Place> {
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        let mut writer = GgufWriter::new()
            .text("general.architecture", "test")
            .u32("test.block_count", 3)
            .u32("test.nextn_predict_layers", drafts)
            .zeros("token_embd.weight", 0, &[4, 4]);
        for layer in layers {
            writer = writer.zeros(&format!("blk.{layer}.ffn_up.weight"), 0, &[4, 4]);
        }
        writer.write(&path);
        let gguf = Gguf::open(&[path]).unwrap();
        let place = usual_place(&gguf);
        (0..gguf.tensors().len()).map(place).collect()
    }

    #[test]
    fn layers_that_draft_are_spare_unless_there_are_no_others() {
        use Place::{Ram, Spare};
        assert_eq!(places(&[0, 1, 2], 0), [Ram; 4]);
        assert_eq!(places(&[0, 1, 2], 1), [Ram, Ram, Ram, Spare]);
        assert_eq!(places(&[2], 1), [Ram, Ram], "a file of drafting layers only");
        assert_eq!(places(&[0, 1, 2], 3), [Ram; 4]);
    }
}
