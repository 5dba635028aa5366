"""Routers for a MoE that was not trained: random directions, adjusted to real hidden states so that all experts get work.

A hidden state has a large part that hardly depends on the token. Any direction that is not orthogonal to it favours one expert for every
token, and a router has no bias to take that away. So each direction is made orthogonal to the mean state. The few coordinates with huge
variance would decide alone; each coordinate is therefore divided by its deviation. The scale is set from the logits that result.
"""

import numpy as np

# Standard deviation of a token's logits. 1.5 over 8 experts gives the first of two used experts about 0.66 of the weight on average.
LOGIT_DEVIATION = 1.5


def fit_router(states: np.ndarray, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Router weights of shape (experts, embedding) for FFN inputs of shape (tokens, embedding)."""
    mean = states.mean(axis=0)
    deviation = states.std(axis=0)
    directions = rng.standard_normal((experts, states.shape[1])) / (deviation + 1e-3 * deviation.mean())
    directions -= np.outer(directions @ mean, mean) / (mean @ mean)
    directions *= LOGIT_DEVIATION / (states @ directions.T).std(axis=0)[:, None]
    # few bits are kept, so that the last ones, in which machines may differ, do not reach the file
    return directions.astype(np.float16).astype(np.float32)


def chosen_experts(states: np.ndarray, router: np.ndarray, used: int) -> np.ndarray:
    """The experts that each token goes to, best first: shape (tokens, used)."""
    return np.argsort(-(states @ router.T), axis=-1)[:, :used]


def load_share(chosen: np.ndarray, experts: int) -> np.ndarray:
    """For each expert the share of all (token, expert) choices; 1 / experts if the load were even."""
    return np.bincount(chosen.ravel(), minlength=experts) / chosen.size


def repeat_share(chosen: np.ndarray) -> float:
    """How many of a token's experts were also the previous token's, on average; used / experts if there were no locality."""
    both = [len(set(before) & set(after)) for before, after in zip(chosen[:-1], chosen[1:])]
    return float(np.mean(both)) / chosen.shape[1]
