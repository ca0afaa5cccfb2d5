"""What the benchmarks on language share: stories, and a Llama of 260 thousand parameters."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import infuser as inf
from infuser.data.text import read_separated, text_dataset
from infuser.models.huggingface import CausalModule, HuggingFace

CONTEXT, VOCABULARY = 128, 512


def stories(n: int, others: int) -> tuple[inf.Run, inf.Dataset, inf.Dataset]:
    """Return a run of the model, n documents of 128 tokens and further ones.

    TinyStories and stories260K where INFUSER_DATA is set; elsewhere a model of the same shape with random weights, and
    random tokens: what is timed depends on neither.
    """
    folder = os.environ.get("INFUSER_DATA")
    if folder:
        builder = HuggingFace(str(Path(folder) / "stories260K"))
        texts = read_separated(Path(folder) / "tinystories.txt")[: n + others]
        data = text_dataset(texts, builder.codec(), CONTEXT, on_long="truncate", on_empty="drop")
        model = builder(data.input_shape, data.n_outputs)
    else:
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (n + others, CONTEXT), dtype=np.int32)
        data = inf.Dataset(tokens, tokens, "causal_lm", VOCABULARY)
        model = _random()
    return run_of(model, data[data.ids[:n]]), data[data.ids[:n]], data[data.ids[n:]]


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of the linear layers, without the one at the end whose weight is the embedding's."""
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]


def linear_alone(run: inf.Run, data: inf.Dataset) -> inf.Run:
    """Return the run with everything frozen but the weights of `linear_names`."""
    model = run.model()
    kept = set(linear_names(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.removesuffix(".weight") in kept)
    return run_of(model, data)


def run_of(model: nn.Module, data: inf.Dataset) -> inf.Run:
    """Return a run whose models are copies of this one: reading its files anew is not what is measured."""
    return inf.Run.from_weights(lambda *_: copy.deepcopy(model), model.state_dict(), data)


def _random() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalModule(LlamaForCausalLM(config))
