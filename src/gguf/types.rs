//! The element types of ggml: how many elements a block holds and how many bytes it takes.
//!
//! A type is a number in the file. The numbers and sizes are those of `enum ggml_type` and `type_traits` in ggml; the
//! block sizes follow from the `block_*` structs in `ggml-common.h`. A host tells those of its own ggml by
//! [`GgmlType::define`], which come first: a newer ggml has types that this table has not.

use parking_lot::RwLock;

use crate::error::{Error, ErrorCode, Result};

/// How the elements of a tensor are stored: in blocks of a fixed number of elements and bytes along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GgmlType {
    id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
}

impl GgmlType {
    /// The type with a number of `enum ggml_type`; `None` for numbers that nobody has told of, or that ggml has removed.
    pub fn from_id(id: u32) -> Option<Self> {
        let defined = DEFINED.read().iter().find(|known| known.id == id).copied();
        defined.or_else(|| TYPES.iter().find(|known| known.id == id).copied())
    }

    /// Stands for a type of which only the number is known, not the size of its blocks.
    pub(super) const fn unknown(id: u32) -> Self {
        Self { id, name: "unknown", block_elements: 1, block_bytes: 0 }
    }

    /// Learns a type from the ggml that computes, for all files that are opened from now on. To be told the same again, or
    /// what the table says anyway, changes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for blocks without elements or bytes, for a name of none or more than 64 bytes, and for a number
    /// that was defined otherwise before.
    pub fn define(id: u32, name: &str, block_elements: u64, block_bytes: u64) -> Result<()> {
        const NAME_BYTES_MAX: usize = 64;
        let refused = |reason: &str| {
            Err(Error::new(ErrorCode::InvalidArgument, format!("type {id} ({name}) cannot be defined: {reason}")))
        };
        if block_elements == 0 || block_bytes == 0 {
            return refused("a block has at least one element and one byte");
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return refused("a name has 1 to 64 bytes");
        }
        let is_same = |known: &Self| (known.block_elements, known.block_bytes) == (block_elements, block_bytes);
        if TYPES.iter().any(|known| known.id == id && is_same(known)) {
            return Ok(());
        }
        let mut defined = DEFINED.write();
        match defined.iter().find(|known| known.id == id) {
            Some(known) if is_same(known) => Ok(()),
            Some(_) => refused("it was defined with blocks of another size before"),
            None => {
                // Once for each number of the host's ggml, so this is bounded.
                let name = Box::leak(name.to_owned().into_boxed_str());
                defined.push(Self { id, name, block_elements, block_bytes });
                Ok(())
            }
        }
    }

    /// Whether the size of its blocks is known.
    pub fn is_known(self) -> bool {
        self.block_bytes != 0
    }

    /// The number in the file.
    pub fn id(self) -> u32 {
        self.id
    }

    /// ggml's name, such as `q4_K`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Elements in a block; the length of a row is a multiple of it. 1 for unquantized types.
    pub fn block_elements(self) -> u64 {
        self.block_elements
    }

    /// Bytes that a block takes; 0 for a type that is not known.
    pub fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// Bytes that a tensor of this shape takes; `None` when a row is not whole blocks or the size overflows.
    pub fn tensor_bytes(self, shape: [u64; 4]) -> Option<u64> {
        if shape[0] % self.block_elements != 0 {
            return None;
        }
        let row_bytes = (shape[0] / self.block_elements).checked_mul(self.block_bytes)?;
        shape[1..].iter().try_fold(row_bytes, |bytes, &length| bytes.checked_mul(length))
    }
}

/// The name of a type that ggml once had, for the message that refuses it.
pub(super) fn removed_name(id: u32) -> Option<&'static str> {
    REMOVED.iter().find(|(removed, _)| *removed == id).map(|(_, name)| *name)
}

const fn entry(id: u32, name: &'static str, block_elements: u64, block_bytes: u64) -> GgmlType {
    GgmlType { id, name, block_elements, block_bytes }
}

/// What hosts have told, beyond the table.
static DEFINED: RwLock<Vec<GgmlType>> = RwLock::new(Vec::new());

const TYPES: [GgmlType; 35] = [
    entry(0, "f32", 1, 4),
    entry(1, "f16", 1, 2),
    entry(2, "q4_0", 32, 18),
    entry(3, "q4_1", 32, 20),
    entry(6, "q5_0", 32, 22),
    entry(7, "q5_1", 32, 24),
    entry(8, "q8_0", 32, 34),
    entry(9, "q8_1", 32, 36),
    entry(10, "q2_K", 256, 84),
    entry(11, "q3_K", 256, 110),
    entry(12, "q4_K", 256, 144),
    entry(13, "q5_K", 256, 176),
    entry(14, "q6_K", 256, 210),
    entry(15, "q8_K", 256, 292),
    entry(16, "iq2_xxs", 256, 66),
    entry(17, "iq2_xs", 256, 74),
    entry(18, "iq3_xxs", 256, 98),
    entry(19, "iq1_s", 256, 50),
    entry(20, "iq4_nl", 32, 18),
    entry(21, "iq3_s", 256, 110),
    entry(22, "iq2_s", 256, 82),
    entry(23, "iq4_xs", 256, 136),
    entry(24, "i8", 1, 1),
    entry(25, "i16", 1, 2),
    entry(26, "i32", 1, 4),
    entry(27, "i64", 1, 8),
    entry(28, "f64", 1, 8),
    entry(29, "iq1_m", 256, 56),
    entry(30, "bf16", 1, 2),
    entry(34, "tq1_0", 256, 54),
    entry(35, "tq2_0", 256, 66),
    entry(39, "mxfp4", 32, 17),
    entry(40, "nvfp4", 64, 36),
    entry(41, "q1_0", 128, 18),
    entry(42, "q2_0", 64, 18),
];

const REMOVED: [(u32, &str); 8] = [
    (4, "q4_2"),
    (5, "q4_3"),
    (31, "q4_0_4_4"),
    (32, "q4_0_4_8"),
    (33, "q4_0_8_8"),
    (36, "iq4_nl_4_4"),
    (37, "iq4_nl_4_8"),
    (38, "iq4_nl_8_8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_below_the_count_is_known_or_removed_exactly_once() {
        for id in 0..43 {
            assert_ne!(GgmlType::from_id(id).is_some(), removed_name(id).is_some(), "type {id}");
        }
        assert_eq!(TYPES.len() + REMOVED.len(), 43);
        assert_eq!(GgmlType::from_id(43), None);
        assert_eq!(GgmlType::from_id(u32::MAX), None);
    }

    #[test]
    fn a_host_adds_types_that_the_table_has_not() {
        let id = 9000; // no other test's
        GgmlType::define(id, "f8_x", 32, 33).unwrap();
        let defined = GgmlType::from_id(id).unwrap();
        assert_eq!((defined.name(), defined.tensor_bytes([64, 2, 1, 1])), ("f8_x", Some(132)));
        GgmlType::define(id, "f8_x", 32, 33).unwrap();
        GgmlType::define(12, "q4_K", 256, 144).unwrap();
        for (id, name, elements, bytes) in
            [(id, "f8_x", 32, 34), (9001, "", 1, 1), (9001, "a", 0, 1), (9001, "a", 1, 0)]
        {
            let error = GgmlType::define(id, name, elements, bytes).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        }
        assert_eq!(GgmlType::from_id(9001), None);
    }

    #[test]
    fn sizes_of_tensors() {
        let q4_k = GgmlType::from_id(12).unwrap();
        assert_eq!((q4_k.id(), q4_k.name(), q4_k.block_elements(), q4_k.block_bytes()), (12, "q4_K", 256, 144));
        assert_eq!(q4_k.tensor_bytes([512, 3, 2, 1]), Some(2 * 144 * 3 * 2));
        assert_eq!(q4_k.tensor_bytes([300, 1, 1, 1]), None, "a row must be whole blocks");
        assert_eq!(q4_k.tensor_bytes([256, u64::MAX, 1, 1]), None, "must not overflow");
    }
}
