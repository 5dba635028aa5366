//! How large the context of a request is: what the server was told, or what memory suggests; more when a request asks
//! for more, and never more than the model was trained for or memory can hold.
//!
//! Loading is dear, so the numbers are coarse: a request gets what is loaded if that is enough, and otherwise the next
//! power of two, so that clients that ask for a little more each time cause few loads.

use super::catalog::Model;
use crate::kv_cache;

/// Ollama's smallest default. Fewer tokens do not hold what most programs send.
const TOKENS_MIN: u32 = 4096;

/// Ollama's largest default.
const DEFAULT_TOKENS_MAX: u32 = 262_144;

/// How contexts are chosen.
#[derive(Clone, Copy, Debug)]
pub struct ContextPolicy {
    /// What `--ctx` says.
    pub chosen_tokens: Option<u32>,
    /// Requests that are computed at once, each with a context of its own.
    pub parallel: u32,
    /// Memory that was available when the server started.
    pub memory_bytes: u64,
}

/// What of a model decides about its context.
#[derive(Clone, Copy, Debug)]
struct Shape {
    trained_tokens: u32,
    bytes_per_token: u64,
    projector_bytes: u64,
    is_embedding: bool,
}

impl Shape {
    fn of(model: &Model) -> Self {
        let trained = u32::try_from(model.file.gguf.hyper_parameters().context_length).unwrap_or(u32::MAX);
        Self {
            // Some headers do not say.
            trained_tokens: if trained == 0 { u32::MAX } else { trained },
            bytes_per_token: kv_cache::bytes_per_token(&model.file),
            projector_bytes: model.projector_bytes(),
            is_embedding: model.is_embedding(),
        }
    }
}

impl ContextPolicy {
    /// The context of a request that names none.
    pub fn default_tokens(&self, model: &Model) -> u32 {
        self.default_of(Shape::of(model))
    }

    /// The context that a request needs: what it names, as far as that is possible.
    pub fn needed_tokens(&self, model: &Model, asked: Option<u32>) -> u32 {
        self.needed_of(Shape::of(model), asked)
    }

    /// The context that a model is loaded with for such a request.
    pub fn loaded_tokens(&self, model: &Model, asked: Option<u32>) -> u32 {
        self.loaded_of(Shape::of(model), asked)
    }

    /// Why a context was chosen, for people.
    pub fn reason(&self, model: &Model, asked: Option<u32>) -> String {
        let (needed, trained) = (self.needed_tokens(model, asked), Shape::of(model).trained_tokens);
        match (asked, self.chosen_tokens) {
            (Some(asked), _) if asked > needed && needed == trained => {
                format!("{asked} were asked for, but the model was trained for {trained}")
            }
            (Some(asked), _) if asked > needed => format!("{asked} were asked for, but memory holds no more"),
            (Some(asked), _) => format!("{asked} were asked for"),
            (None, Some(_)) => "--ctx".to_owned(),
            (None, None) => "chosen by memory and model; --ctx sets another".to_owned(),
        }
    }

    fn default_of(&self, shape: Shape) -> u32 {
        if let Some(chosen) = self.chosen_tokens {
            return chosen;
        }
        // Of models that look at a whole text at once, computing it takes memory that grows with the square.
        let most = if shape.is_embedding { TOKENS_MIN } else { DEFAULT_TOKENS_MAX };
        // A quarter of memory: the rest is for weights.
        let mut tokens = most;
        while tokens > TOKENS_MIN && self.bytes(shape, tokens) > self.memory_for(shape) / 4 {
            tokens /= 2;
        }
        tokens.min(shape.trained_tokens)
    }

    fn needed_of(&self, shape: Shape, asked: Option<u32>) -> u32 {
        let default = self.default_of(shape);
        asked.map_or(default, |asked| asked.min(self.most_of(shape)))
    }

    fn loaded_of(&self, shape: Shape, asked: Option<u32>) -> u32 {
        let (needed, default) = (self.needed_of(shape, asked), self.default_of(shape));
        if needed <= default {
            return default;
        }
        needed.checked_next_power_of_two().unwrap_or(needed).min(self.most_of(shape))
    }

    /// The most that any request gets: what the model was trained for, as far as three quarters of memory hold it; but
    /// never less than what the server was told to give.
    fn most_of(&self, shape: Shape) -> u32 {
        let token = self.bytes(shape, 1);
        let fits = (self.memory_for(shape) / 4 * 3).checked_div(token).unwrap_or(u64::MAX);
        let fits = u32::try_from(fits).unwrap_or(u32::MAX).max(TOKENS_MIN);
        shape.trained_tokens.min(fits).max(self.default_of(shape))
    }

    /// Memory for weights and contexts: a projector is never streamed.
    fn memory_for(&self, shape: Shape) -> u64 {
        self.memory_bytes.saturating_sub(shape.projector_bytes)
    }

    fn bytes(&self, shape: Shape, tokens: u32) -> u64 {
        shape.bytes_per_token.saturating_mul(u64::from(tokens) * u64::from(self.parallel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    /// 32 KiB a token: 4096 tokens are 128 MiB.
    const SHAPE: Shape =
        Shape { trained_tokens: 131_072, bytes_per_token: 32 << 10, projector_bytes: 0, is_embedding: false };

    fn policy(memory_bytes: u64) -> ContextPolicy {
        ContextPolicy { chosen_tokens: None, parallel: 2, memory_bytes }
    }

    #[test]
    fn the_default_grows_with_memory() {
        let default = |memory: u64| policy(memory).default_of(SHAPE);
        assert_eq!(default(GIB / 2), 4096, "never less");
        assert_eq!(default(2 * GIB), 8192);
        assert_eq!(default(16 * GIB), 65536);
        assert_eq!(default(1000 * GIB), 131_072, "what the model was trained for");
        let small = Shape { trained_tokens: 2048, ..SHAPE };
        assert_eq!(policy(16 * GIB).default_of(small), 2048);
        assert_eq!(policy(16 * GIB).default_of(Shape { is_embedding: true, ..SHAPE }), 4096);
        let chosen = ContextPolicy { chosen_tokens: Some(1000), ..policy(16 * GIB) };
        assert_eq!((chosen.default_of(SHAPE), chosen.loaded_of(SHAPE, None)), (1000, 1000));
    }

    #[test]
    fn what_is_asked_for_is_rounded_up_and_limited() {
        let policy = policy(2 * GIB);
        let sizes = |asked| (policy.needed_of(SHAPE, asked), policy.loaded_of(SHAPE, asked));
        assert_eq!(sizes(None), (8192, 8192));
        assert_eq!(sizes(Some(512)), (512, 8192), "a smaller one is served by what is loaded");
        assert_eq!(sizes(Some(9000)), (9000, 16384));
        // Three quarters of 2 GiB hold 24576 tokens for each of two requests.
        assert_eq!(sizes(Some(131_072)), (24576, 24576));
        let small = Shape { trained_tokens: 8192, ..SHAPE };
        assert_eq!(policy.needed_of(small, Some(131_072)), 8192, "what the model was trained for");
        let unknown = Shape { trained_tokens: u32::MAX, bytes_per_token: 0, projector_bytes: 0, is_embedding: false };
        assert_eq!(policy.loaded_of(unknown, Some(u32::MAX)), u32::MAX);
    }

    #[test]
    fn any_series_of_numbers_causes_few_loads() {
        let policy = policy(16 * GIB);
        let shape = Shape { trained_tokens: 8192, ..SHAPE };
        let (mut loaded, mut loads) = (0, 0);
        for asked in (1..20_000).chain([512, 131_072]) {
            if policy.needed_of(shape, Some(asked)) > loaded {
                loaded = policy.loaded_of(shape, Some(asked));
                loads += 1;
            }
        }
        assert!(loads <= 2, "{loads}");
    }
}
