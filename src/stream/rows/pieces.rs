//! Pieces of tables: which are in memory, which are on their way, and which one goes for another.
//!
//! A table has millions of rows of a few hundred bytes to some KiB, so it is cut by place in the file, not by row: a *piece* is
//! as large as the least that the drive reads. A piece lives in a *place* of memory. Which piece goes is a clock's choice: one that was
//! used since the hand came by stays.
//!
//! Invariants:
//! 1. Nobody but the drive touches the memory of a place that is Loading.
//! 2. A place with users keeps its piece, and its bytes once it is Ready.
//! 3. `at` names exactly the pieces of the places that are Loading or Ready.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::memory::{Arena, Backing};

/// A piece: its file, and its number there.
pub(super) type Piece = (usize, u64);

/// Announcements after which a piece that nobody asked for may go like any other: its pass was given up.
const PATIENCE: u64 = 64;

/// What a place holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Holds {
    #[default]
    Nothing,
    /// A read is writing to it.
    Loading,
    /// All bytes of its piece.
    Ready,
    /// The read failed; those that awaited it have not all left.
    Failed,
}

/// What a place is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A row that somebody waits for.
    Demand,
    /// A row of the announcement with this number.
    Announcement(u64),
    /// It lies between two that are wanted, and reading on costs less than beginning anew.
    Gap,
}

#[derive(Default)]
struct Place {
    piece: Piece,
    holds: Holds,
    /// Demands that have not copied it yet.
    users: u32,
    /// The latest announcement that it is part of and that was not demanded yet; 0 for none.
    announced: u64,
    /// Whether it was used since the hand came by.
    used: bool,
    /// Somebody sleeps until it is no longer Loading.
    is_awaited: bool,
    generation: u64,
    error: Option<Error>,
}

/// All places.
pub(super) struct Pieces {
    /// One place beside the other. Not touched before it is used.
    memory: Arena,
    piece_bytes: usize,
    places: Vec<Place>,
    at: HashMap<Piece, usize>,
    hand: usize,
    /// Places that hold nothing.
    empty: Vec<usize>,
    /// The number of the latest announcement.
    pub(super) announcement: u64,
    /// Reads that are not over.
    pub(super) in_flight: usize,
    /// Somebody sleeps until a place can be had.
    pub(super) wants_room: bool,
    /// The engine itself has failed.
    pub(super) broken: Option<Error>,
}

impl Pieces {
    /// Room for so many.
    ///
    /// # Errors
    /// `Resource` when the system refuses the memory.
    pub(super) fn new(capacity: usize, piece_bytes: usize) -> Result<Self> {
        Ok(Self {
            memory: Arena::new(capacity * piece_bytes)?,
            piece_bytes,
            places: (0..capacity).map(|_| Place::default()).collect(),
            at: HashMap::new(),
            hand: 0,
            empty: (0..capacity).rev().collect(),
            announcement: 0,
            in_flight: 0,
            wants_room: false,
            broken: None,
        })
    }

    /// Where a place is in memory.
    pub(super) fn address(&self, place: usize) -> *mut u8 {
        self.memory.address(place * self.piece_bytes)
    }

    /// Where a piece is, or will be.
    pub(super) fn find(&self, piece: Piece) -> Option<usize> {
        self.at.get(&piece).copied()
    }

    pub(super) fn holds(&self, place: usize) -> Holds {
        self.places[place].holds
    }

    /// Which of the reads into a place is the latest, counted from 1.
    pub(super) fn generation(&self, place: usize) -> u64 {
        self.places[place].generation
    }

    /// Gives a piece a place, to be read into; `None` when none can be had for that.
    pub(super) fn take(&mut self, piece: Piece, purpose: For) -> Option<usize> {
        assert!(!self.at.contains_key(&piece), "a piece is read that has a place already");
        let place = match self.empty.pop() {
            Some(place) => place,
            None => {
                let place = self.victim(purpose)?;
                self.at.remove(&self.places[place].piece);
                place
            }
        };
        let generation = self.places[place].generation + 1;
        let announced = if let For::Announcement(number) = purpose { number } else { 0 };
        self.places[place] = Place { piece, holds: Holds::Loading, announced, generation, ..Place::default() };
        self.at.insert(piece, place);
        self.in_flight += 1;
        Some(place)
    }

    /// A place that may be given away. Demands come before announcements, these before what lies between.
    fn victim(&mut self, purpose: For) -> Option<usize> {
        // Twice round finds all that was used; once more, for a demand, what is only announced.
        let rounds = if purpose == For::Demand { 3 } else { 2 };
        for step in 0..rounds * self.places.len() {
            let index = self.hand;
            self.hand = (index + 1) % self.places.len();
            let (is_last_round, now) = (step >= 2 * self.places.len(), self.announcement);
            let place = &mut self.places[index];
            if place.holds != Holds::Ready || place.users > 0 {
                continue;
            }
            let is_expected = place.announced > 0 && place.announced + PATIENCE > now;
            if (is_expected && !is_last_round) || (std::mem::take(&mut place.used) && purpose != For::Gap) {
                continue;
            }
            return Some(index);
        }
        None
    }

    /// Notes that an announced row has a part in a piece that has a place already.
    pub(super) fn announce(&mut self, place: usize, number: u64) {
        self.places[place].announced = number;
    }

    /// Adds a user. The announcement, if it was one, has come true.
    pub(super) fn hold(&mut self, place: usize) {
        let place = &mut self.places[place];
        place.users += 1;
        place.announced = 0;
        place.used = true;
    }

    /// Takes a user away.
    pub(super) fn leave(&mut self, index: usize) {
        let place = &mut self.places[index];
        assert!(place.users > 0, "a piece is given back that nobody uses");
        place.users -= 1;
        if place.users == 0 && place.holds == Holds::Failed {
            place.holds = Holds::Nothing;
            self.empty.push(index);
        }
    }

    /// Says that somebody is going to sleep until the place is not Loading any more.
    pub(super) fn await_place(&mut self, place: usize) {
        self.places[place].is_awaited = true;
    }

    /// A read is over; says whether somebody is to be woken.
    pub(super) fn finished(&mut self, index: usize, outcome: Result<()>) -> bool {
        self.in_flight -= 1;
        let place = &mut self.places[index];
        assert_eq!(place.holds, Holds::Loading, "a read ended where nothing was read");
        match outcome {
            Ok(()) => place.holds = Holds::Ready,
            Err(error) => {
                // Whoever wants the piece from now on has it read again.
                self.at.remove(&place.piece);
                place.holds = if place.users > 0 { Holds::Failed } else { Holds::Nothing };
                if place.users == 0 {
                    self.empty.push(index);
                }
                place.error = Some(error);
            }
        }
        let is_awaited = std::mem::take(&mut place.is_awaited);
        let is_free = place.users == 0 && std::mem::take(&mut self.wants_room);
        is_awaited || is_free
    }

    /// Why the read into a place failed.
    pub(super) fn error(&self, place: usize) -> Option<Error> {
        self.places[place].error.clone()
    }

    /// How many pieces have a place.
    pub(super) fn count(&self) -> usize {
        self.at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    fn ready(pieces: &mut Pieces, number: u64, purpose: For) -> Option<usize> {
        let place = pieces.take((0, number), purpose)?;
        pieces.finished(place, Ok(()));
        Some(place)
    }

    #[test]
    fn what_is_used_or_in_use_stays() {
        let mut pieces = Pieces::new(3, 4096).unwrap();
        let places: Vec<usize> = (0..3).map(|number| ready(&mut pieces, number, For::Demand).unwrap()).collect();
        pieces.hold(places[0]);
        pieces.hold(places[1]);
        pieces.leave(places[1]);
        assert_eq!(ready(&mut pieces, 3, For::Demand), Some(places[2]), "the one that was not used");
        assert_eq!(pieces.find((0, 2)), None);
        let another = ready(&mut pieces, 4, For::Demand).unwrap();
        assert_ne!(another, places[0], "somebody copies from it");
        assert_eq!(pieces.count(), 3);
    }

    #[test]
    fn what_is_announced_goes_for_demands_only_until_its_pass_is_long_over() {
        let mut pieces = Pieces::new(2, 4096).unwrap();
        pieces.announcement = 1;
        ready(&mut pieces, 0, For::Announcement(1)).unwrap();
        ready(&mut pieces, 1, For::Announcement(1)).unwrap();
        assert_eq!(pieces.take((0, 2), For::Announcement(1)), None);
        assert_eq!(pieces.take((0, 2), For::Gap), None);
        let place = ready(&mut pieces, 2, For::Demand).unwrap();
        pieces.hold(place);
        assert_eq!(pieces.take((0, 3), For::Announcement(2)), None, "one is in use, one still awaited");
        pieces.announcement += PATIENCE;
        assert!(pieces.take((0, 3), For::Announcement(pieces.announcement)).is_some());
        assert_eq!(pieces.take((0, 4), For::Demand), None, "one is in use, one is being read");
    }

    #[test]
    fn a_read_that_failed_is_told_to_those_that_awaited_it_and_to_nobody_else() {
        let mut pieces = Pieces::new(1, 4096).unwrap();
        let failure = || Err(Error::new(ErrorCode::Io, "no"));
        let place = pieces.take((0, 7), For::Announcement(1)).unwrap();
        assert!(!pieces.finished(place, failure()), "nobody waits");
        let place = pieces.take((0, 7), For::Demand).unwrap();
        pieces.hold(place);
        pieces.await_place(place);
        assert!(pieces.finished(place, failure()));
        assert_eq!((pieces.holds(place), pieces.find((0, 7))), (Holds::Failed, None));
        assert!(pieces.error(place).is_some());
        assert_eq!(pieces.take((0, 8), For::Demand), None);
        pieces.leave(place);
        assert!(pieces.take((0, 8), For::Demand).is_some());
    }
}
