//! The streamed tensors as blocks and slot classes.

use crate::gguf::Gguf;
use crate::io::DirectFile;
use crate::plan::{Plan, Role, SlotClass, layer_of, role_of};

/// A stretch of a file that is read and used as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockExtent {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) size_bytes: usize,
}

/// One streamed tensor: `block_count` blocks, one for a dense tensor, one per expert otherwise.
#[derive(Clone, Debug)]
pub(super) struct StreamedTensor {
    pub(super) first_block: usize,
    pub(super) block_count: usize,
    pub(super) is_expert: bool,
    /// Tensors of one layer are needed together.
    pub(super) layer: u32,
    /// The pool that its blocks live in.
    pub(super) pool: usize,
}

/// Everything that is streamed.
#[derive(Debug)]
pub(super) struct StreamedTensors {
    pub(super) tensors: Vec<StreamedTensor>,
    pub(super) blocks: Vec<BlockExtent>,
    pub(super) classes: Vec<SlotClass>,
    /// By index in [`Gguf::tensors`].
    by_tensor: Vec<Option<usize>>,
}

impl StreamedTensors {
    pub(super) fn new(gguf: &Gguf, plan: &Plan, files: &[DirectFile]) -> Self {
        let slot_unit = files
            .iter()
            .map(|file| file.alignment().offset_bytes.max(file.alignment().memory_bytes))
            .fold(crate::hw::page_size(), usize::max) as u64;
        let mut this = Self {
            tensors: Vec::new(),
            blocks: Vec::new(),
            classes: Vec::new(),
            by_tensor: vec![None; gguf.tensors().len()],
        };
        for &tensor in &plan.streamed {
            let info = &gguf.tensors()[tensor];
            let is_expert = role_of(info) == Role::Expert;
            let block_count = if is_expert { info.shape[2] as usize } else { 1 };
            let block_bytes = info.size_bytes / block_count as u64;
            // Widening adds less than one unit of alignment at each end.
            let widening_bytes = 2 * files[info.file].alignment().offset_bytes as u64 - 2;
            let slot_bytes = (block_bytes + widening_bytes).next_multiple_of(slot_unit);
            let pool = this.class_of(slot_bytes, block_count);
            this.by_tensor[tensor] = Some(this.tensors.len());
            this.tensors.push(StreamedTensor {
                first_block: this.blocks.len(),
                block_count,
                is_expert,
                layer: layer_of(&info.name).unwrap_or(u32::MAX),
                pool,
            });
            this.blocks.extend((0..block_count as u64).map(|block| BlockExtent {
                file: info.file,
                offset: info.offset + block * block_bytes,
                size_bytes: block_bytes as usize,
            }));
        }
        this
    }

    fn class_of(&mut self, slot_bytes: u64, block_count: usize) -> usize {
        match self.classes.iter().position(|class| class.slot_bytes == slot_bytes) {
            Some(pool) => {
                self.classes[pool].block_count += block_count;
                pool
            }
            None => {
                self.classes.push(SlotClass { slot_bytes, block_count });
                self.classes.len() - 1
            }
        }
    }

    /// The streamed tensor with an index of [`Gguf::tensors`], if that one is streamed.
    pub(super) fn find(&self, tensor: usize) -> Option<usize> {
        self.by_tensor.get(tensor).copied().flatten()
    }

    /// The blocks that never leave once read, when `slots_per_pool` slots are available.
    ///
    /// A dense pass uses every block once, in the same order each time: with fewer slots than blocks, least-recently-used
    /// replacement would miss every time, and keeping a fixed set is the best that any policy can do. The set is spread
    /// evenly over the pass, so that reads are too; the other slots are the ring that the rest flows through.
    pub(super) fn permanent_blocks(&self, slots_per_pool: &[usize]) -> Vec<bool> {
        const RING_SLOTS: usize = 6;
        let mut permanent = vec![false; self.blocks.len()];
        let mut seen = vec![0usize; self.classes.len()];
        for tensor in self.tensors.iter().filter(|tensor| !tensor.is_expert) {
            let class = self.classes[tensor.pool];
            let slots = slots_per_pool[tensor.pool];
            let kept =
                if slots >= class.block_count { slots } else { slots.saturating_sub(RING_SLOTS.min(slots / 2 + 1)) };
            let index = seen[tensor.pool];
            seen[tensor.pool] += 1;
            permanent[tensor.first_block] = (index + 1) * kept / class.block_count > index * kept / class.block_count;
        }
        permanent
    }
}
