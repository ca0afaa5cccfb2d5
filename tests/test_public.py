"""The public surface, on purpose: a name is added or removed here first."""

import subprocess
import sys

import pytest

import infuser

PUBLIC = """
Arm
Damping
Dataset
Direction
Edit
Effect
Estimate
FInfluence
GradientMatching
GradientSimilarity
Influence
InfuserError
L2
Linf
Local
LossTrace
PGD
Pool
PostEdit
Recipe
Run
Scores
Suspicion
TRAK
TracIn
Trials
Unrolled
UnrolledPGD
__version__
adapters
arms
attribute
compare
data
detect
detection
find
fit_dense
fit_ekfac
fit_kfac
flips
identity
lds
leave_some_out
load_edit
measure
models
perturb
report
retrain
save_edit
self_influence
train
transfer
true_influence
write_images
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names():
    assert infuser.__all__ == sorted(infuser.__all__)
    assert infuser.__all__ == PUBLIC.split()
    assert dir(infuser) == infuser.__all__


@pytest.mark.parametrize("name", PUBLIC.split())
def test_every_name_resolves_to_what_it_is_called(name):
    value = getattr(infuser, name)
    if name == "__version__":
        assert value.count(".") >= 2
    else:
        assert value.__name__.removeprefix("infuser.") == name
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'infuser' has no attribute 'nothing'"):
        _ = infuser.nothing


def test_importing_infuser_imports_nothing_heavy():
    heavy = "torch transformers datasets ray sklearn scipy skimage pyarrow PIL plotly"
    code = f"import sys, infuser; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert python(code) == "[]\n"
    # Nor does reading data need torch.
    assert python("import sys, infuser; infuser.data.load; print('torch' in sys.modules)") == "False\n"


def test_nothing_happens_at_import():
    code = """
import os, random, sys, threading, warnings
import numpy, torch
import scipy.sparse, scipy.special, sklearn  # these change the filters of warnings
warnings.simplefilter("error")
def state():
    return {
        "environment": dict(os.environ),
        "folder": (os.getcwd(), sorted(os.listdir("."))),
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": numpy.random.get_state()[1].tolist(),
        "python seed": random.getstate(),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filters": list(warnings.filters),
    }
before = state()
import infuser
for name in infuser.__all__:
    getattr(infuser, name)
after = state()
print([key for key in before if before[key] != after[key]])
"""
    assert python(code) == "[]\n"
