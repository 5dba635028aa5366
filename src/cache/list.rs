//! Doubly linked lists over numbers of slots or units, so that moving one costs the same however many there are.

use std::marker::PhantomData;

use typed_index_collections::TiVec;

const NONE: u32 = u32::MAX;

/// The links of everything that an index of this type names; each is in at most one list.
#[derive(Debug)]
pub(super) struct Links<I: From<usize>> {
    previous: TiVec<I, u32>,
    next: TiVec<I, u32>,
}

/// One list's ends.
#[derive(Debug)]
pub(super) struct List<I> {
    front: u32,
    back: u32,
    indices: PhantomData<I>,
}

impl<I: From<usize>> Links<I> {
    pub(super) fn new(count: usize) -> Self {
        Self { previous: vec![NONE; count].into(), next: vec![NONE; count].into() }
    }
}

impl<I: Copy + From<usize>> List<I>
where
    usize: From<I>,
{
    pub(super) const fn new() -> Self {
        Self { front: NONE, back: NONE, indices: PhantomData }
    }

    pub(super) fn front(&self) -> Option<I> {
        index_of(self.front)
    }

    pub(super) fn back(&self) -> Option<I> {
        index_of(self.back)
    }

    pub(super) fn push_back(&mut self, links: &mut Links<I>, index: I) {
        let number = usize::from(index) as u32;
        links.previous[index] = self.back;
        links.next[index] = NONE;
        match self.back() {
            Some(back) => links.next[back] = number,
            None => self.front = number,
        }
        self.back = number;
    }

    pub(super) fn remove(&mut self, links: &mut Links<I>, index: I) {
        let (previous, next) = (links.previous[index], links.next[index]);
        match index_of::<I>(previous) {
            Some(previous) => links.next[previous] = next,
            None => self.front = next,
        }
        match index_of::<I>(next) {
            Some(next) => links.previous[next] = previous,
            None => self.back = previous,
        }
    }

    /// Front first.
    #[cfg(test)]
    pub(super) fn iter<'a>(&self, links: &'a Links<I>) -> impl Iterator<Item = I> + 'a {
        std::iter::successors(self.front(), |&index| index_of(links.next[index]))
    }
}

fn index_of<I: From<usize>>(link: u32) -> Option<I> {
    (link != NONE).then(|| I::from(link as usize))
}
