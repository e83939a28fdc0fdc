"""A decoder-only language model, pruned before training on the text of Python's own manual.

    python -m experiments.examples.language_model

Characters go in as integers, which Gaussian noise cannot be. Three ways to score such a network:
noise in place of the embedded characters (`nts.linen` passes floating-point inputs through
`nn.Embed` as they are), characters drawn at random by a function given as `inputs=`, and real text
by `inputs="data"`. The text is that of `help()`: the module `pydoc_data.topics`, which comes with
Python. The network is a decoder of pre-norm blocks (Radford et al., "Language models are
unsupervised multitask learners", 2019), much smaller.

What came out is in docs/results/other-models.md.
"""

from __future__ import annotations

import functools
import pydoc_data.topics
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntksap_jax as nts
from experiments.examples import shared
from ntksap_jax import criteria, masks, schedules
from ntksap_jax.types import Key, Network, Params

VOCABULARY = 128
"""Characters beyond ASCII become a question mark."""


def read_text() -> tuple[jax.Array, jax.Array]:
    """Returns the text for training, and the last tenth of it for testing, as character codes."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = jnp.array(list(text.encode("ascii", "replace")), jnp.int32)
    end = len(codes) * 9 // 10
    return codes[:end], codes[end:]


def draw_windows(key: Key, text: jax.Array, count: int, length: int) -> jax.Array:
    """Cuts `count` windows of `length` characters out of the text, anywhere."""
    starts = jax.random.randint(key, (count, 1), 0, len(text) - length + 1)
    return text[starts + jnp.arange(length)]


def entropy_of_characters(train_text: jax.Array, test_text: jax.Array) -> float:
    """Returns the nats a character that knowing nothing but the characters' frequencies leaves."""
    counts = jnp.bincount(train_text, length=VOCABULARY) + 1
    return float(-jnp.mean(jnp.log(counts / counts.sum())[test_text]))


class LanguageModel(nn.Module):
    """Embeddings of characters and positions, blocks, a linear head."""

    features: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        """Maps characters (N, length) to logits (N, length, VOCABULARY) of the next ones."""
        x = nn.Embed(VOCABULARY, self.features, name="characters")(characters)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for index in range(self.depth):
            x = shared.Block(self.num_heads, causal=True, name=f"block_{index}")(x)
        return nn.Dense(VOCABULARY, name="head")(nn.LayerNorm()(x))


def cross_entropy(network: Network, params: Params, windows: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats of each character, given those before it."""
    logits = network.apply(params, windows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
    return jnp.mean(losses)


def main(
    *,
    length: int = 32,
    features: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    density: float = 0.05,
    rounds: int = 10,
    num_samples: int = 5,
    score_size: int = 16,
    steps: int = 250,
    batch_size: int = 32,
    test_windows: int = 256,
) -> list[shared.Run]:
    """Compares dense, random, and NTK-SAP by noise, random characters and real text."""
    train_text, test_text = read_text()
    model = LanguageModel(features, depth, num_heads)
    network = nts.linen(model, (length,), dtype=jnp.int32)
    init_key, mask_key, text_key, train_key = jax.random.split(jax.random.key(0), 4)
    params = network.init(init_key)

    def noise(key: Key, count: int) -> jax.Array:
        # As large as embeddings are: beside larger inputs, what the blocks add to them is nothing.
        return jax.random.normal(key, (count, length, features)) / np.sqrt(features)

    def random_characters(key: Key, count: int) -> jax.Array:
        return jax.random.randint(key, (count, length), 0, VOCABULARY)

    sizes: Any = {"num_samples": num_samples, "batch_size": score_size}
    scores = {
        "random": criteria.random(),
        "NTK-SAP, noise": criteria.ntk_sap(network, inputs=noise, **sizes),
        "NTK-SAP, random": criteria.ntk_sap(network, inputs=random_characters, **sizes),
        "NTK-SAP, text": criteria.ntk_sap(network, inputs="data", **sizes),
    }
    batch = (draw_windows(text_key, train_text, score_size, length), None)
    schedule = schedules.exponential(density, rounds=rounds)
    to_train = shared.make_masks(mask_key, params, scores, schedule=schedule, batch=batch)

    def loss_fn(params: Params, state: None, key: Key) -> tuple[jax.Array, None]:
        windows = draw_windows(key, train_text, batch_size, length + 1)
        return cross_entropy(network, params, windows), state

    optimizer = functools.partial(shared.adamw_with_warmup, steps=steps)
    train = shared.make_train(loss_fn, optimizer, steps=steps)
    test = draw_windows(text_key, test_text, test_windows, length + 1)
    test_loss = jax.jit(lambda params: cross_entropy(network, params, test))

    def measure(params: Params, _: None) -> dict[str, float]:
        return {"nats": float(test_loss(params))}

    runs = shared.train_each(train, train_key, params, to_train, 5e-3, measure=measure)
    show(runs, entropy_of_characters(train_text, test_text))
    return runs


def show(runs: Sequence[shared.Run], without_context: float) -> None:
    """Prints a row for each network: what it keeps, and how well it tells the next character."""
    columns = ("kept by", "weights", "attention", "MLP", "head", "nats/char", "bits")
    parts = ("attention", "mlp", "head")
    rows = [
        (
            run.method,
            f"{masks.num_kept(run.mask):,}",
            *(f"{shared.density_of(part, run.mask):.3f}" for part in parts),
            *both_units(run.results["nats"]),
        )
        for run in runs
    ]
    shared.show(columns, [*rows, ("by frequency", *[""] * 4, *both_units(without_context))])


def both_units(nats: float) -> tuple[str, str]:
    """Returns an entropy in nats and in bits."""
    return f"{nats:.3f}", f"{nats / np.log(2):.3f}"


if __name__ == "__main__":
    main()
