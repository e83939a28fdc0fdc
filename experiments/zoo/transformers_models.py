"""Flax models of transformers, the last series that has them: the linen modules inside."""

from typing import Any

import jax
import jax.numpy as jnp

import ntksap_jax as nts
from experiments.zoo.types import (
    BATCH,
    CLASSES,
    VOCABULARY,
    Entry,
    labelled,
    ones,
    positions,
    tokens,
)

SEQUENCE = jax.ShapeDtypeStruct((12,), jnp.int32)
TINY = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


def bert() -> Entry:
    """BERT with a classifier, of two layers."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_flax_bert import FlaxBertForSequenceClassificationModule

    config = BertConfig(VOCABULARY, intermediate_size=128, num_labels=CLASSES, **TINY)
    model = FlaxBertForSequenceClassificationModule(config)
    draw = {
        "input_ids": tokens,
        "attention_mask": ones,
        "token_type_ids": lambda key, count: jnp.zeros((count, 12), int),
        "position_ids": positions,
    }
    mode: Any = {"head_mask": None}
    network = nts.linen(
        model, dict.fromkeys(draw, SEQUENCE), output_fn=lambda outputs: outputs.logits, **mode
    )
    inputs = {name: function(jax.random.key(1), BATCH) for name, function in draw.items()}
    labels = jnp.arange(BATCH) % CLASSES
    return Entry(network, (inputs, labels), draw=draw, module=model, mode=mode)


def gpt2() -> Entry:
    """GPT-2, a language model, of two layers."""
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_flax_gpt2 import FlaxGPT2LMHeadModule

    config = GPT2Config(VOCABULARY, n_positions=12, n_embd=32, n_layer=2, n_head=4)
    model = FlaxGPT2LMHeadModule(config)
    draw = {"input_ids": tokens, "attention_mask": ones, "position_ids": positions}
    network = nts.linen(
        model, dict.fromkeys(draw, SEQUENCE), output_fn=lambda outputs: outputs.logits
    )
    inputs = {name: function(jax.random.key(1), BATCH) for name, function in draw.items()}
    labels = jnp.roll(inputs["input_ids"], -1, axis=1)
    return Entry(network, (inputs, labels), draw=draw, module=model)


def t5() -> Entry:
    """T5, encoder and decoder, of two layers each."""
    from transformers import T5Config
    from transformers.models.t5.modeling_flax_t5 import FlaxT5ForConditionalGenerationModule

    config = T5Config(VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    model = FlaxT5ForConditionalGenerationModule(config)
    draw = {
        "input_ids": tokens,
        "attention_mask": ones,
        "decoder_input_ids": tokens,
        "decoder_attention_mask": ones,
    }
    network = nts.linen(
        model, dict.fromkeys(draw, SEQUENCE), output_fn=lambda outputs: outputs.logits
    )
    inputs = {name: function(jax.random.key(1), BATCH) for name, function in draw.items()}
    labels = jnp.roll(inputs["decoder_input_ids"], -1, axis=1)
    return Entry(network, (inputs, labels), draw=draw, module=model)


def vit() -> Entry:
    """The vision transformer, of two layers."""
    from transformers import ViTConfig
    from transformers.models.vit.modeling_flax_vit import FlaxViTForImageClassificationModule

    config = ViTConfig(image_size=32, patch_size=8, intermediate_size=128, **TINY)
    config.num_labels = CLASSES
    model = FlaxViTForImageClassificationModule(config)
    network = nts.linen(model, (32, 32, 3), output_fn=lambda outputs: outputs.logits)
    return Entry(network, labelled(32, 32, 3), module=model)


def regnet() -> Entry:
    """RegNet-Y, with grouped convolutions and squeeze-and-excitation, of two stages."""
    from transformers import RegNetConfig
    from transformers.models.regnet.modeling_flax_regnet import (
        FlaxRegNetForImageClassificationModule,
    )

    config = RegNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8, num_labels=CLASSES
    )
    model = FlaxRegNetForImageClassificationModule(config)
    network = nts.linen(model, (32, 32, 3), output_fn=lambda outputs: outputs.logits)
    return Entry(network, labelled(32, 32, 3), module=model)
