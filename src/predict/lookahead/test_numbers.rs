//! Numbers for tests: the same ones for the same seed.

pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Between 0 and 1.
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// So many around a mean, about normally distributed.
    pub fn near(&mut self, mean: f32, deviation: f32, count: usize) -> Vec<f32> {
        let mut one = || (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0;
        (0..count).map(|_| mean + deviation * one()).collect()
    }
}
