//! Indices that cannot be taken for one another: a type for each kind of thing that is numbered.
//!
//! Lists that one of them indexes are [`typed_index_collections::TiVec`]s, so that a number of another kind does not compile. In
//! memory and at run time each is a `usize`.

/// Declares types of indices.
macro_rules! index_types {
    ($($(#[$documentation:meta])* $name:ident;)+) => {$(
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub usize);

        impl From<usize> for $name {
            #[inline]
            fn from(index: usize) -> Self {
                Self(index)
            }
        }

        impl From<$name> for usize {
            #[inline]
            fn from(index: $name) -> Self {
                index.0
            }
        }

        impl std::ops::Add<usize> for $name {
            type Output = Self;

            #[inline]
            fn add(self, count: usize) -> Self {
                Self(self.0 + count)
            }
        }

        impl std::ops::Sub for $name {
            type Output = usize;

            #[inline]
            fn sub(self, first: Self) -> usize {
                self.0 - first.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(formatter)
            }
        }
    )+};
}

index_types! {
    /// A read in flight, by its caller's number for it; not a token of text.
    ReadToken;
    /// A streamed tensor, among those that are; not an index of [`crate::gguf::Gguf::tensors`].
    StreamedId;
    /// A layer that has experts which its router chooses, counted among those; not the layer's number in the model.
    ExpertLayer;
    /// What is read and used as a whole: a streamed dense tensor, or one expert of a streamed matrix.
    BlockId;
    /// A fetch, among those that exist.
    WaiterId;
    /// An expert, among those of its layer; 0 of what has none.
    ExpertId;
    /// A pool of slots; before there are pools, the class of slots that it will have.
    PoolId;
    /// A slot of a pool.
    SlotNumber;
    /// A layer as policies count them: a tensor, in a replayed trace a layer. See [`crate::cache::policy::Shape`].
    PolicyLayer;
    /// A block as its pool's policy sees it, in RAM or not.
    UnitId;
}

impl ExpertId {
    /// From a host's number for it, which a router chose; `None` for one that no expert can have.
    pub fn of_host(id: i32) -> Option<Self> {
        usize::try_from(id).ok().map(Self)
    }
}

/// The block of an expert, counted from its tensor's first one.
impl std::ops::Add<ExpertId> for BlockId {
    type Output = Self;

    #[inline]
    fn add(self, expert: ExpertId) -> Self {
        self + expert.0
    }
}

/// The unit of an expert, counted from its tensor's first one.
impl std::ops::Add<ExpertId> for UnitId {
    type Output = Self;

    #[inline]
    fn add(self, expert: ExpertId) -> Self {
        self + expert.0
    }
}
