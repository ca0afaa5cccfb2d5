"""What the jobs of a study share."""

import numpy as np
import pytest

from infuser.data import Dataset, digits, subset
from infuser.errors import InfuserError
from infuser.measure import predictions
from infuser.models import mlp
from infuser.params import trainable
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
