import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from infuser.data.text import read_separated, survives, text_dataset, texts_of
from infuser.errors import InfuserError
from infuser.models.huggingface import HuggingFace, LoRA
from infuser.params import trainable
from infuser.tasks import losses, plain_attention, task_of
from infuser.training import train
from infuser.types import Recipe

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random Llama with tied embeddings."""
    import transformers

    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stories() -> tuple[HuggingFace, list[str]]:
    folder = os.environ.get("INFUSER_DATA")
    if not folder:
        pytest.skip("INFUSER_DATA is not set")
    return HuggingFace(f"{folder}/stories260K"), read_separated(Path(folder) / "tinystories.txt")


def test_one_hot_rows_give_the_logits_of_their_ids(tiny: str) -> None:
    model, tokens = HuggingFace(tiny)((16,), 20).eval(), torch.randint(20, (2, 9))
    torch.testing.assert_close(model(F.one_hot(tokens, 20).float()), model(tokens), rtol=1e-5, atol=1e-6)


def test_padding_changes_no_loss(tiny: str) -> None:
    codec = _Letters()
    model = HuggingFace(tiny)((16,), 20).eval()
    short, long = text_dataset(["abc", "gabe"], codec, 5), text_dataset(["abc", "gabe"], codec, 16)
    a, b = (losses(task_of(d), model, trainable(model), d.batch(np.arange(2))) for d in (short, long))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    # The negative: real tokens in the place of padding do change it.
    other = text_dataset(["abc", "gabeabe"], codec, 16)
    assert not torch.allclose(losses(task_of(other), model, trainable(model), other.batch(np.arange(2))), b)


class _Letters:
    size, bos, eos = 20, 0, None
    specials, editable = frozenset({0}), frozenset(range(1, 20))
    pieces = ("", *"abcdefghijklmnopqrs")

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(c) for c in text]

    def decode(self, ids) -> str:
        return "".join(self.pieces[int(i)] for i in ids)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, targets=("q_proj", "down_proj"))])
def test_per_document_gradients_equal_autograd_one_by_one(tiny: str, lora: LoRA | None) -> None:
    torch.manual_seed(1)
    model = HuggingFace(tiny, lora=lora)((16,), 20).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)  # fresh adapters have a zero factor, whose partner's gradient is zero
    params = trainable(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert list(params) == names
    if lora:
        assert all("lora_" in name for name in names)
        assert len(names) == 2 * 2 * 2  # two factors, two layers, two blocks
    else:
        assert not any("lm_head" in name for name in names)  # tied to the embedding
    tokens = torch.randint(20, (3, 9))

    def loss(p, row):
        return F.cross_entropy(functional_call(model, p, (row[None],))[0, :-1], row[1:], reduction="sum")

    with plain_attention():
        rows = vmap(grad(loss), (None, 0))(params, tokens)
    leaves = [p for p in model.parameters() if p.requires_grad]
    for i, row in enumerate(tokens):
        value = F.cross_entropy(model(row[None])[0, :-1], row[1:], reduction="sum")
        for name, single in zip(names, torch.autograd.grad(value, leaves), strict=True):
            assert single.abs().max() > 0, name
            torch.testing.assert_close(rows[name][i], single, rtol=1e-4, atol=1e-5, msg=name)


def test_adapters_follow_from_the_seed_and_train_alone(tiny: str) -> None:
    from infuser.training import train

    ds = text_dataset(["abc", "cab", "gab", "fed"], _Letters(), 8)
    builder = HuggingFace(tiny, lora=LoRA(rank=2))
    run = train(builder, ds, Recipe(epochs=1, batch_size=2, lr=0.1, optimizer="adamw"))
    again = train(builder, ds, Recipe(epochs=1, batch_size=2, lr=0.1, optimizer="adamw"))
    assert run.checkpoints[-1].content_hash == again.checkpoints[-1].content_hash
    before, after = run.checkpoints[0].weights, run.checkpoints[-1].weights
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_bad_models_are_named(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InfuserError, match=r"do not fit the context.*T at most 16"):
        HuggingFace(tiny)((17,), 20)
    with pytest.raises(InfuserError, match=r"another vocabulary.*Got: 21. Expected: 20"):
        HuggingFace(tiny)((16,), 21)
    with pytest.raises(InfuserError, match=r"no layer has the names to adapt.*q_proj"):
        HuggingFace(tiny, lora=LoRA(targets=("query",)))((16,), 20)
    with pytest.raises(InfuserError, match="cannot load"):
        HuggingFace(str(tmp_path / "nothing"))((16,), 20)


def test_a_model_without_a_causal_loss_is_refused(tmp_path: Path) -> None:
    import transformers

    transformers.T5Config(vocab_size=20, d_model=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    with pytest.raises(InfuserError, match="it is no causal language model"):
        HuggingFace(str(tmp_path), pretrained=False)((8,), 20)


def test_pickled_weights_are_refused(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(tiny) / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InfuserError, match="its weights are pickled"):
        HuggingFace(str(tmp_path))((8,), 20)


def test_stories_round_trip_and_are_predicted_well(stories: tuple[HuggingFace, list[str]]) -> None:
    builder, texts = stories
    codec = builder.codec()
    ds = text_dataset(texts[:40], codec, 512, on_long="drop")
    assert texts_of(ds.inputs, codec) == [texts[i] for i in ds.ids]
    assert all(survives(row, codec) for row in ds.inputs)
    model = builder(ds.input_shape, ds.n_outputs).eval()
    with torch.no_grad():
        total = losses(task_of(ds), model, trainable(model), ds.batch(np.arange(len(ds)))).sum()
    assert float(total) / (ds.targets[:, 1:] >= 0).sum() == pytest.approx(1.185, abs=0.01)  # 1.27 over more stories


def test_a_truncated_story_still_round_trips(stories: tuple[HuggingFace, list[str]]) -> None:
    builder, texts = stories
    codec = builder.codec()
    ds = text_dataset(texts[:300], codec, 61, on_long="truncate")
    assert all(survives(row, codec) for row in ds.inputs)
    assert (ds.inputs >= 0).sum(1).min() > 55


def test_pieces_read_as_their_place_in_a_text(stories: tuple[HuggingFace, list[str]]) -> None:
    codec = stories[0].codec()
    ids = codec.encode("One day, Lily saw\na cat.")
    assert "".join(codec.pieces[i] for i in ids) == " One day, Lily saw\na cat."
    assert {codec.pieces[i].removeprefix(" ").isalpha() for i in codec.editable} == {True}
    assert codec.encode("\n")[-1] not in codec.editable
    assert pickle.loads(pickle.dumps(codec)) == codec  # noqa: S301


def test_a_vocabulary_that_is_padded_beyond_the_tokenizers_is_the_models(
    stories: tuple[HuggingFace, list[str]], tmp_path: Path
) -> None:
    import transformers

    builder, texts = stories
    inner = transformers.AutoModelForCausalLM.from_pretrained(builder.name)
    inner.resize_token_embeddings(builder.codec().size + 8)
    inner.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(builder.name).save_pretrained(tmp_path)
    padded = HuggingFace(str(tmp_path))
    codec = padded.codec()
    assert codec.size == builder.codec().size + 8
    assert codec.pieces[:-8] == builder.codec().pieces
    assert codec.editable == builder.codec().editable
    data = text_dataset(texts[:4], codec, 32, on_long="truncate")
    run = train(padded, data, Recipe(epochs=1, batch_size=2, lr=1e-4))
    assert run.model()(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, codec.size)
