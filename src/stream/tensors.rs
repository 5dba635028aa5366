//! The streamed tensors as blocks and slot classes.

use std::collections::BTreeMap;

use typed_index_collections::TiVec;

use super::rows::Table;
use crate::cache::NewBlock;
use crate::cache::policy::Shape;
use crate::gguf::Gguf;
use crate::gguf::{Role, layer_of, rank_in_layer, role_of};
use crate::index::{BlockId, ExpertId, ExpertLayer, PolicyLayer, PoolId, SlotNumber, StreamedId, UnitId};
use crate::io::Alignment;
use crate::plan::SlotClass;
use crate::stats::LayerStatistics;

/// The layer of a tensor that belongs to none; it comes last.
const OUTSIDE_LAYERS: u32 = u32::MAX;

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
    pub(super) name: String,
    pub(super) first_block: BlockId,
    pub(super) block_count: usize,
    pub(super) is_expert: bool,
    /// Tensors of one layer are needed together.
    pub(super) layer: u32,
    /// Index in [`StreamedTensors::expert_layers`]; none of experts that the layer's router does not choose.
    pub(super) expert_layer: Option<ExpertLayer>,
    /// Where it is likely to come among them.
    pub(super) rank_in_layer: usize,
    /// The pool that its blocks live in.
    pub(super) pool: PoolId,
    /// Blocks of earlier tensors in that pool: where its own go when all fit.
    pub(super) first_in_pool: usize,
    /// Where it comes among the tensors of its kind, and the number of its first block, as policies count them.
    pub(super) policy_layer: PolicyLayer,
    pub(super) first_unit: UnitId,
}

impl StreamedTensor {
    /// Whether it holds an expert: a layer's matrices may hold different numbers of them.
    pub(super) fn has(&self, expert: ExpertId) -> bool {
        expert.0 < self.block_count
    }
}

/// Everything that is streamed.
#[derive(Debug)]
pub(super) struct StreamedTensors {
    pub(super) tensors: TiVec<StreamedId, StreamedTensor>,
    pub(super) blocks: TiVec<BlockId, BlockExtent>,
    pub(super) classes: TiVec<PoolId, SlotClass>,
    /// What is looked up instead, a row at a time.
    pub(super) tables: Vec<Table>,
    /// The layers that have experts, in order: the tensors that hold them.
    pub(super) expert_layers: TiVec<ExpertLayer, Vec<StreamedId>>,
    /// Of each of them, whether its experts follow from the token, by a table.
    pub(super) is_hash_routed: TiVec<ExpertLayer, bool>,
    /// Of each of `tensors`, whether it holds the experts that its layer's router chooses.
    is_routed: TiVec<StreamedId, bool>,
    /// By index in [`Gguf::tensors`].
    by_tensor: Vec<Option<StreamedId>>,
}

impl StreamedTensors {
    /// `streamed` are indices of [`Gguf::tensors`], in order; `files` is what reads of each file have to be aligned to.
    pub(super) fn new(gguf: &Gguf, streamed: &[usize], files: &[Alignment]) -> Self {
        let slot_unit =
            files.iter().map(|file| file.offset_bytes.max(file.memory_bytes)).fold(crate::hw::page_size(), usize::max)
                as u64;
        let mut this = Self {
            tensors: TiVec::new(),
            blocks: TiVec::new(),
            classes: TiVec::new(),
            tables: Vec::new(),
            expert_layers: TiVec::new(),
            is_hash_routed: TiVec::new(),
            is_routed: TiVec::new(),
            by_tensor: vec![None; gguf.tensors().len()],
        };
        for &tensor in streamed {
            let info = &gguf.tensors()[tensor];
            if role_of(info).is_looked_up() {
                this.tables.push(Table::of(gguf, tensor));
                continue;
            }
            let is_expert = role_of(info).has_experts();
            let block_count = if is_expert { info.shape[2] as usize } else { 1 };
            let block_bytes = info.size_bytes / block_count as u64;
            // Widening adds less than one unit of alignment at each end.
            let widening_bytes = 2 * files[info.file].offset_bytes as u64 - 2;
            let slot_bytes = (block_bytes + widening_bytes).next_multiple_of(slot_unit);
            let pool = this.class_of(slot_bytes, block_count, !is_expert);
            let first_in_pool = this.classes[pool].block_count - block_count;
            this.is_routed.push(role_of(info) == Role::Expert);
            this.by_tensor[tensor] = Some(this.tensors.next_key());
            this.tensors.push(StreamedTensor {
                name: info.name.clone(),
                first_block: this.blocks.next_key(),
                block_count,
                is_expert,
                layer: layer_of(&info.name).unwrap_or(OUTSIDE_LAYERS),
                expert_layer: None, // see number_in_order
                rank_in_layer: rank_in_layer(&info.name),
                pool,
                first_in_pool,
                policy_layer: PolicyLayer(0),
                first_unit: UnitId(0),
            });
            this.blocks.extend((0..block_count as u64).map(|block| BlockExtent {
                file: info.file,
                offset: info.offset + block * block_bytes,
                size_bytes: block_bytes as usize,
            }));
        }
        this.number_in_order();
        let has_table = |layer: u32| gguf.find(&format!("blk.{layer}.ffn_gate_tid2eid.weight")).is_some();
        this.is_hash_routed = this.expert_layer_numbers().into_iter().map(has_table).collect();
        this
    }

    /// Finds the layers that have experts, and numbers tensors and units as policies count them.
    fn number_in_order(&mut self) {
        let expert_count = self.policy_shape(false).expert_count;
        let (mut layer, mut dense_count, mut expert_tensor_count) = (None, 0, 0);
        for index in self.likely_order() {
            let tensor = &mut self.tensors[index];
            let (count, units) = match tensor.is_expert {
                true => (&mut expert_tensor_count, expert_count),
                false => (&mut dense_count, 1),
            };
            tensor.policy_layer = PolicyLayer(*count);
            tensor.first_unit = UnitId(*count * units);
            *count += 1;
            if !self.is_routed[index] {
                continue;
            }
            if layer.replace(tensor.layer) != Some(tensor.layer) {
                self.expert_layers.push(Vec::new());
            }
            let Some(last) = self.expert_layers.last_key() else { continue };
            tensor.expert_layer = Some(last);
            self.expert_layers[last].push(index);
        }
    }

    /// The layer numbers of [`Self::expert_layers`].
    pub(super) fn expert_layer_numbers(&self) -> Vec<u32> {
        self.expert_layers.iter().map(|tensors| self.tensors[tensors[0]].layer).collect()
    }

    /// What is streamed of each layer, and how much of that is in RAM.
    pub(super) fn by_layer(&self, is_resident: impl Fn(BlockId) -> bool) -> Vec<LayerStatistics> {
        let mut layers: BTreeMap<u32, LayerStatistics> = BTreeMap::new();
        for tensor in &self.tensors {
            let told = layers.entry(tensor.layer).or_default();
            told.layer = Some(tensor.layer).filter(|&layer| layer != OUTSIDE_LAYERS);
            for block in (0..tensor.block_count).map(|block| tensor.first_block + block) {
                let bytes = self.blocks[block].size_bytes as u64;
                told.streamed_bytes += bytes;
                told.resident_bytes += if is_resident(block) { bytes } else { 0 };
            }
        }
        layers.into_values().collect()
    }

    fn class_of(&mut self, slot_bytes: u64, block_count: usize, every_pass: bool) -> PoolId {
        let same = |class: &SlotClass| class.slot_bytes == slot_bytes && class.every_pass == every_pass;
        let found = self.classes.position(same);
        let new = SlotClass { slot_bytes, block_count: 0, every_pass };
        let pool = found.unwrap_or_else(|| self.classes.push_and_get_key(new));
        self.classes[pool].block_count += block_count;
        pool
    }

    /// The streamed tensor with an index of [`Gguf::tensors`], if that one is streamed.
    pub(super) fn find(&self, tensor: usize) -> Option<StreamedId> {
        self.by_tensor.get(tensor).copied().flatten()
    }

    /// The table with an index of [`Gguf::tensors`], if that tensor is one that is streamed.
    pub(super) fn table(&self, tensor: usize) -> Option<&Table> {
        self.tables.iter().find(|table| table.tensor == tensor)
    }

    /// Bytes of all tables.
    pub(super) fn table_bytes(&self) -> u64 {
        self.tables.iter().map(Table::bytes).sum()
    }

    /// What policies are told of the pools of dense blocks or of experts: every tensor is a layer to them.
    pub(super) fn policy_shape(&self, dense: bool) -> Shape {
        let tensors = self.tensors.iter().filter(|tensor| tensor.is_expert != dense);
        Shape {
            layer_count: tensors.clone().count(),
            expert_count: tensors.map(|tensor| tensor.block_count).max().unwrap_or(0),
        }
    }

    /// The tensor that a block belongs to, and its number there.
    pub(super) fn tensor_of(&self, block: BlockId) -> (&StreamedTensor, ExpertId) {
        let after = self.tensors.raw.partition_point(|tensor| tensor.first_block <= block);
        let index = StreamedId(after - 1);
        (&self.tensors[index], ExpertId(block - self.tensors[index].first_block))
    }

    /// A block as its pool gets to know it, and which pool that is; its first byte will be `head_padding` bytes into the slot.
    pub(super) fn new_block(&self, block: BlockId, head_padding: usize) -> (PoolId, NewBlock) {
        let (tensor, expert) = self.tensor_of(block);
        let preferred_slot = SlotNumber(tensor.first_in_pool + expert.0);
        (tensor.pool, NewBlock { block, unit: tensor.first_unit + expert, preferred_slot, head_padding })
    }

    /// The blocks of an expert in all matrices of an expert layer that have it.
    pub(super) fn blocks_of(
        &self,
        layer: ExpertLayer,
        expert: ExpertId,
    ) -> impl Iterator<Item = (&StreamedTensor, BlockId)> {
        let tensors = self.expert_layers[layer].iter().map(|&index| &self.tensors[index]);
        tensors.filter(move |tensor| tensor.has(expert)).map(move |tensor| (tensor, tensor.first_block + expert))
    }

    /// All tensors in the order in which a pass is likely to use them.
    pub(super) fn likely_order(&self) -> Vec<StreamedId> {
        let mut order: Vec<StreamedId> = self.tensors.keys().collect();
        order.sort_by_key(|&tensor| (self.tensors[tensor].layer, self.tensors[tensor].rank_in_layer));
        order
    }

    /// Those of them that every pass uses.
    pub(super) fn dense_in_likely_order(&self) -> Vec<StreamedId> {
        self.likely_order().into_iter().filter(|&tensor| !self.tensors[tensor].is_expert).collect()
    }
}
