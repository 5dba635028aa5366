//! Doubly linked lists over slot numbers, so that moving a slot costs the same however many there are.

const NONE: u32 = u32::MAX;

/// The links of every slot of a pool; each slot is in at most one list.
#[derive(Debug)]
pub(super) struct Links {
    previous: Vec<u32>,
    next: Vec<u32>,
}

/// One list's ends.
#[derive(Debug)]
pub(super) struct List {
    front: u32,
    back: u32,
}

impl Links {
    pub(super) fn new(count: usize) -> Self {
        Self { previous: vec![NONE; count], next: vec![NONE; count] }
    }
}

impl List {
    pub(super) const fn new() -> Self {
        Self { front: NONE, back: NONE }
    }

    pub(super) fn front(&self) -> Option<usize> {
        (self.front != NONE).then_some(self.front as usize)
    }

    pub(super) fn back(&self) -> Option<usize> {
        (self.back != NONE).then_some(self.back as usize)
    }

    pub(super) fn push_back(&mut self, links: &mut Links, slot: usize) {
        let number = slot as u32;
        links.previous[slot] = self.back;
        links.next[slot] = NONE;
        match self.back() {
            Some(back) => links.next[back] = number,
            None => self.front = number,
        }
        self.back = number;
    }

    pub(super) fn remove(&mut self, links: &mut Links, slot: usize) {
        let (previous, next) = (links.previous[slot], links.next[slot]);
        if previous == NONE {
            self.front = next;
        } else {
            links.next[previous as usize] = next;
        }
        if next == NONE {
            self.back = previous;
        } else {
            links.previous[next as usize] = previous;
        }
    }

    /// Front first.
    #[cfg(test)]
    pub(super) fn iter<'a>(&self, links: &'a Links) -> impl Iterator<Item = usize> + 'a {
        let next = |&slot: &usize| Some(links.next[slot]).filter(|&next| next != NONE).map(|next| next as usize);
        std::iter::successors(self.front(), next)
    }
}
