//! A share that is counted, of which the past counts less and less.

/// Observations at which they are halved.
const OBSERVATIONS_MAX: f32 = 512.0;

/// Something that came true in some of the cases.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    right: f32,
    all: f32,
}

impl Share {
    /// So many of so many more came true.
    pub fn add(&mut self, right: usize, all: usize) {
        self.right += right as f32;
        self.all += all as f32;
        if self.all >= OBSERVATIONS_MAX {
            self.right /= 2.0;
            self.all /= 2.0;
        }
    }

    /// The share; `None` before anything was observed.
    pub fn value(self) -> Option<f32> {
        (self.all > 0.0).then(|| self.right / self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_fades() {
        let mut share = Share::default();
        assert_eq!(share.value(), None);
        share.add(1, 4);
        assert_eq!(share.value(), Some(0.25));
        (0..1000).for_each(|_| share.add(8, 8));
        assert!(share.value().unwrap() > 0.99);
    }
}
