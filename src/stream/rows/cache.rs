//! Pieces of tables that were read, kept for the next token that wants them.
//!
//! A table has millions of rows of a few hundred bytes to some KiB, so it is cut by place in the file, not by row: a *piece* is
//! as large as the least that the drive reads. Which piece goes is a clock's choice: one that was used since the hand came by stays.

use std::collections::HashMap;

/// A piece: its file, and its number there.
pub(super) type Piece = (usize, u64);

/// The pieces that are in memory.
pub(super) struct RowCache {
    piece_bytes: usize,
    /// Not touched before it is used.
    memory: Vec<u8>,
    place_of: HashMap<Piece, usize>,
    /// By place: what is there, and whether it was used since the hand came by.
    held: Vec<(Piece, bool)>,
    hand: usize,
}

impl RowCache {
    /// Room for so many pieces; of none, nothing is kept.
    pub(super) fn new(piece_bytes: usize, capacity: usize) -> Self {
        let memory = vec![0; piece_bytes * capacity];
        Self { piece_bytes, memory, place_of: HashMap::new(), held: Vec::new(), hand: 0 }
    }

    /// A piece's bytes, if it is here.
    pub(super) fn get(&mut self, piece: Piece) -> Option<&[u8]> {
        let place = *self.place_of.get(&piece)?;
        self.held[place].1 = true;
        Some(&self.memory[place * self.piece_bytes..][..self.piece_bytes])
    }

    /// Keeps a piece that is not here, instead of another one when there is no room.
    pub(super) fn insert(&mut self, piece: Piece, bytes: &[u8]) {
        let capacity = self.memory.len() / self.piece_bytes;
        if capacity == 0 || self.place_of.contains_key(&piece) {
            return;
        }
        let place = if self.held.len() < capacity {
            self.held.push((piece, false));
            self.held.len() - 1
        } else {
            let place = self.victim();
            self.place_of.remove(&self.held[place].0);
            self.held[place] = (piece, false);
            place
        };
        self.place_of.insert(piece, place);
        self.memory[place * self.piece_bytes..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Bytes of all pieces that are here.
    pub(super) fn held_bytes(&self) -> u64 {
        (self.held.len() * self.piece_bytes) as u64
    }

    fn victim(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (place + 1) % self.held.len();
            if !std::mem::take(&mut self.held[place].1) {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_has_its_own_bytes() {
        let mut cache = RowCache::new(4, 3);
        for number in 0..3 {
            cache.insert((0, number), &[number as u8; 4]);
        }
        assert_eq!(cache.get((0, 0)), Some(&[0; 4][..]));
        cache.insert((1, 0), &[9; 4]);
        assert_eq!(cache.get((0, 1)), None, "the first one that was not used");
        for (piece, byte) in [((0, 0), 0), ((0, 2), 2), ((1, 0), 9)] {
            assert_eq!(cache.get(piece), Some(&[byte; 4][..]));
        }
        cache.insert((1, 1), &[7; 4]);
        assert_eq!(cache.held_bytes(), 12);
        assert_eq!(cache.get((1, 1)), Some(&[7; 4][..]), "all were used: one goes all the same");
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut cache = RowCache::new(4, 0);
        cache.insert((0, 0), &[1; 4]);
        assert_eq!(cache.held_bytes(), 0);
        assert_eq!(cache.get((0, 0)), None);
    }
}
