"""Curvature and scores of transformers models through the builder: every trained parameter covered, padding unseen."""

import warnings

import pytest
import torch

from infuser.attribution.scoring import inner_products
from infuser.checkpoints import Run
from infuser.curvature import fit_ekfac
from infuser.data.text import Characters, text_dataset
from infuser.models.huggingface import HuggingFace, LoRA
from infuser.params import trainable

transformers = pytest.importorskip("transformers")
TEXTS = ["abcabc", "cab", "bacca ab", "cc b"]
CODEC = Characters("abc ")
KINDS = ("llama, tied", "gpt neo", "lora")


def made(kind: str, folder: str, context: int) -> Run:
    config = (
        transformers.GPTNeoConfig(
            vocab_size=5, hidden_size=8, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=2,
            intermediate_size=12, max_position_embeddings=16, window_size=4, bos_token_id=0, eos_token_id=0,
        )
        if kind == "gpt neo"
        else transformers.LlamaConfig(
            vocab_size=5, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    config.save_pretrained(folder)
    torch.manual_seed(0)
    builder = HuggingFace(folder, pretrained=False, lora=LoRA(rank=2) if kind == "lora" else None)
    data = text_dataset(TEXTS, CODEC, context)
    model = builder(data.input_shape, data.n_outputs)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return Run.from_weights(builder, model.state_dict(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_captured_scores_equal_per_document_gradients(kind: str, tmp_path) -> None:
    run, data = made(kind, str(tmp_path), 12), text_dataset(TEXTS, CODEC, 12)
    params = trainable(run.model())
    v = {name: torch.randn(3, *value.shape) for name, value in params.items()}
    captured, vmap, jvp = (inner_products(run, params, data, v, via=via) for via in ("captured", "vmap", "jvp"))
    torch.testing.assert_close(captured, vmap, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(jvp, vmap, rtol=2e-4, atol=2e-4)
    assert (vmap - vmap.flip(1)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_covers_every_trained_parameter_and_does_not_see_padding(kind: str, tmp_path) -> None:
    solved = []
    for context in (10, 16):
        run, data = made(kind, str(tmp_path), context), text_dataset(TEXTS, CODEC, context)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a parameter that is not covered is named in one
            curvature = fit_ekfac(run, data, labels="empirical")
        params = trainable(run.model())
        generator = torch.Generator().manual_seed(0)
        v = {name: torch.randn(1, *value.shape, generator=generator) for name, value in params.items()}
        moved = curvature.matvec(v)
        assert all(value.abs().max() > 0 for value in moved.values())
        solved.append(moved)
    for name, value in solved[0].items():
        torch.testing.assert_close(solved[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
