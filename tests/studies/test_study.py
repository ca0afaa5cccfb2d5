"""What the jobs of a study share."""

from dataclasses import replace

import numpy as np
import pytest

from infuser.data import Dataset, digits, subset
from infuser.errors import InfuserError
from infuser.measure import predictions
from infuser.models import mlp
from infuser.params import trainable
from infuser.studies.experiment import make_edits, probe_job
from infuser.studies.study import Experiment, choose_probes, prepare, require_sizes
from infuser.training import train
from infuser.types import Recipe


@pytest.fixture(scope="module")
def trained():
    data, test = digits()
    return train(mlp, subset(data, 100), Recipe(epochs=1, threads=1)), test


def test_fewer_probes_are_the_first_of_more(trained):
    run, test = trained
    many = choose_probes(Experiment(probes=12), run, test)
    few = choose_probes(Experiment(probes=5), run, test)
    assert few.documents.ids.tolist() == many.documents.ids[:5].tolist()
    assert np.asarray(few.labels).tolist() == np.asarray(many.labels)[:5].tolist()
    other = choose_probes(Experiment(probes=5, probe_seed=1), run, test)
    assert other.documents.ids.tolist() != few.documents.ids.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Experiment(limit=50, k=51), r"k is out of range.*51.*1 to 50"),
        (Experiment(limit=50, k=5, probes=400), "more probes than test documents"),
    ],
)
def test_settings_that_the_data_cannot_meet_stop_before_training(settings, message, tmp_path):
    with pytest.raises(InfuserError, match=message):
        prepare(settings, tmp_path, {})
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_classes_leave_no_target():
    images, labels = np.zeros((40, 1, 4, 4), dtype=np.uint8), np.arange(40) % 2
    two = Dataset.from_arrays(images, labels)
    with pytest.raises(InfuserError, match=r"neither predicted nor true.*2 classes"):
        require_sizes(Experiment(k=5, probes=3), two, two)
    three = Dataset.from_arrays(images, np.arange(40) % 3)
    require_sizes(Experiment(k=5, probes=3), three, three)


def test_a_target_is_neither_the_prediction_nor_the_label(trained):
    run, test = trained
    probes = choose_probes(Experiment(probes=200), run, test)
    model = run.model()
    guesses = predictions(model, trainable(model), probes.documents)
    labels = np.asarray(probes.labels)
    assert len(set(probes.documents.ids.tolist())) == 200
    assert not (labels == np.asarray(guesses)).any()
    assert not (labels == probes.documents.targets).any()
    # Else no target would have had to be refused, and the test could not fail.
    assert (np.asarray(guesses) != probes.documents.targets).any()


SHORT = Experiment(
    limit=60,
    model="mlp",
    recipe=Recipe(epochs=2, threads=1),
    fit_documents=None,
    probes=1,
    k=4,
    steps=2,
    radius=4,
    unrolled="scratch",
    select="potential",
    controls=("noise", "random_docs", "influence"),
    regimes=("scratch",),
    seeds=(1,),
    workers=1,
)


def test_an_unrolled_edit_is_a_strategy_of_a_study(tmp_path):
    study = prepare(SHORT, tmp_path, {})
    made = make_edits(study, 0)
    assert list(made) == ["edit", "random_docs", "influence"]
    for name in ("edit", "random_docs"):
        assert made[name].made_by.startswith("unrolled PGD Linf 4/255, 2 steps of 5/255, from scratch, 3 other orders")
    assert made["edit"].made_by.endswith("4 of 60 documents, potential")
    plain = make_edits(replace(study, settings=replace(SHORT, unrolled=None, controls=())), 0)["edit"]
    assert np.array_equal(made["influence"].after, plain.after)
    assert not np.array_equal(made["edit"].ids, plain.ids) or not np.array_equal(made["edit"].after, plain.after)
    part = probe_job(study, 0)
    assert sorted({*part.trials["scratch"].arm}) == ["edit", "influence", "noise", "random_docs"]
    assert part.facts["predicted"] == pytest.approx(made["edit"].gains.sum())


def test_settings_of_an_unrolled_edit_are_checked():
    with pytest.raises(InfuserError, match=r"seeds is out of range.*1000001.*none that an unrolled edit is made with"):
        replace(SHORT, seeds=(1, 1_000_001))
    replace(SHORT, seeds=(1, 1_000_003))
    with pytest.raises(InfuserError, match=r"made for scratch, which is not among.*last_epoch.*regimes=\[scratch\]"):
        replace(SHORT, regimes=("last_epoch",))
    with pytest.raises(InfuserError, match=r"made of all documents jointly.*select=potential"):
        replace(SHORT, select="post_edit")
    with pytest.raises(InfuserError, match="influence is the edit itself"):
        replace(SHORT, unrolled=None)
