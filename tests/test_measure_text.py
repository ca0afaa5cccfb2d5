import numpy as np
import pytest
import torch

from infuser import measure
from infuser.data.dataset import Dataset
from infuser.data.text import text_dataset
from infuser.errors import InfuserError
from infuser.measure_text import (
    Continuation,
    ContrastParts,
    Less,
    Mean,
    TokenLoss,
    Wins,
    coherence,
    continuations,
    document_losses,
    word_contrast,
)
from infuser.params import trainable
from infuser.tasks import losses, task_of
from tests.perturbation import small_text as small


def step_by_step(prefix: str, continuation: str) -> float:
    """log p by feeding ever longer prefixes, one softmax a token."""
    model, total = small.run().model(), 0.0
    ids = [0, *small.CODEC.encode(prefix)]
    with torch.no_grad():
        for i in small.CODEC.encode(continuation):
            total += float(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[i])
            ids.append(i)
    return total


def read(measurement) -> torch.Tensor:
    model = small.run().model()
    with torch.no_grad():
        return measurement(model, trainable(model))


def test_a_continuation_of_several_tokens_is_their_product() -> None:
    pairs = [("a cat ", "dog"), ("Tom ", "hen."), ("I", " a")]
    got = read(continuations(pairs, small.CODEC, 40))
    np.testing.assert_allclose(got, [step_by_step(*pair) for pair in pairs], rtol=1e-9)
    assert not np.allclose(got, [step_by_step("", second) for _, second in pairs], rtol=1e-3)  # the prefix counts


def test_a_word_contrast_keeps_the_prefix_and_reads_both_words_there() -> None:
    data = text_dataset(["Tom cat dog cat", "a sun", "hen cat."], small.CODEC, 40)
    made = word_contrast(data, small.CODEC, "milk", "cat")
    wanted = [step_by_step(p, "milk") - step_by_step(p, "cat") for p in ("Tom ", "hen ")]
    np.testing.assert_allclose(read(made), wanted, rtol=1e-9)
    assert made.queries == ("0@5", "2@5")
    np.testing.assert_allclose(read(made[1]), wanted[1:], rtol=1e-9)
    np.testing.assert_allclose(read(Mean(made)), [np.mean(wanted)], rtol=1e-9)


def test_places_are_limited_by_seed_and_a_missing_word_is_named() -> None:
    data = small.data()
    with pytest.raises(InfuserError, match="'zebra' is nowhere"):
        word_contrast(data, small.CODEC, "cat", "zebra")
    some = [word_contrast(data, small.CODEC, "cat", "dog", limit=2, seed=s).queries for s in (0, 0, 1)]
    assert len(some[0]) == 2
    assert some[0] == some[1]


def test_token_loss_is_the_mean_over_tokens_not_documents() -> None:
    data = small.data()
    model = small.run().model()
    with torch.no_grad():
        per_document = losses(task_of(data), model, trainable(model), data.batch(np.arange(len(data))))
    tokens = (data.targets[:, 1:] >= 0).sum()
    np.testing.assert_allclose(read(TokenLoss(data)), [-float(per_document.sum()) / tokens], rtol=1e-9)
    np.testing.assert_allclose(-read(measure.MeanLoss(data)), float(per_document.mean()), rtol=1e-9)


def test_gradients_do_not_depend_on_recomputed_activations() -> None:
    data = small.data()
    model = small.run().model()
    params = trainable(model)
    repeated = Dataset(np.tile(data.inputs, (3, 1)), np.tile(data.targets, (3, 1)), "causal_lm", data.n_outputs)
    one, _ = measure.gradients(Mean(Continuation(data)), model, params)
    three, _ = measure.gradients(Mean(Continuation(repeated)), model, params)  # 36 documents: with recomputation
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(document_losses(repeated, model, params)[:12], document_losses(data, model, params))


def test_masked_documents_and_other_data_are_refused() -> None:
    data = small.data()
    masked = Dataset(data.inputs, np.full_like(data.targets, -100), "causal_lm", data.n_outputs)
    with pytest.raises(InfuserError, match=r"12 documents have no token with a loss.*all labels are masked"):
        Continuation(masked)


def test_coherence_is_the_mean_pairwise_cosine() -> None:
    data = text_dataset(["Tom cat dog cat", "a sun cat", "hen cat."], small.CODEC, 40)
    made = word_contrast(data, small.CODEC, "milk", "cat")
    model = small.run().model()
    rows, _ = measure.gradients(made, model, trainable(model))
    flat = torch.cat([value.flatten(1) for value in rows.values()], dim=1)
    cosines = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    wanted = float(cosines[~torch.eye(3, dtype=torch.bool)].mean())
    assert coherence(made, model, trainable(model)) == pytest.approx(wanted, rel=1e-6)
    assert abs(wanted) < 0.99
    with pytest.raises(InfuserError, match="at least two queries"):
        coherence(made[0], model, trainable(model))


def test_wins_count_places_where_the_wanted_word_is_likelier() -> None:
    data = text_dataset(["Tom cat dog cat", "a sun cat", "hen cat."], small.CODEC, 40)
    made = word_contrast(data, small.CODEC, "milk", "cat")
    assert read(Wins(made)).tolist() == (read(made) > 0).double().tolist()


def test_the_parts_of_a_contrast_are_those_of_its_measurements() -> None:
    data = text_dataset(["Tom cat dog cat", "a sun cat", "hen cat."], small.CODEC, 40)
    made = word_contrast(data, small.CODEC, "milk", "cat")
    parts = ContrastParts(made, "cat-milk")
    wanted = [read(m).mean() for m in (made, made.wanted, made.against, Wins(made))]
    torch.testing.assert_close(read(parts), torch.stack(wanted))
    assert parts.queries == ("cat-milk:contrast", "cat-milk:log_p_target", "cat-milk:log_p_probe", "cat-milk:wins")
    assert len(parts) == len(set(read(parts).tolist())) == 4  # no two of them are the same number here


def test_less_takes_the_mean_of_the_second_from_each_query_of_the_first() -> None:
    data = text_dataset(["Tom cat dog cat", "a sun cat", "hen cat."], small.CODEC, 40)
    made, other = (word_contrast(data, small.CODEC, "milk", probe) for probe in ("cat", "sun"))
    less = Less(made, other, 0.5)
    torch.testing.assert_close(read(less), read(made) - 0.5 * read(other).mean())
    assert not torch.allclose(read(less), read(made))
    assert less.queries == made.queries
