"""Infuser shapes and audits model behaviour through training data.

The public names are resolved when they are first used (PEP 562), so that importing infuser does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

# Public name -> the module that defines it, or the module itself. Sorted; locked by a test.
_WHERE = {
    "Arm": "infuser.types",
    "Damping": "infuser.types",
    "Dataset": "infuser.data.dataset",
    "Direction": "infuser.types",
    "Edit": "infuser.types",
    "Effect": "infuser.types",
    "Estimate": "infuser.types",
    "FInfluence": "infuser.attribution.f_ine",
    "GradientMatching": "infuser.perturbation.gradient_matching",
    "GradientSimilarity": "infuser.attribution.similarity",
    "Influence": "infuser.attribution.influence",
    "InfuserError": "infuser.errors",
    "L2": "infuser.perturbation.balls",
    "Linf": "infuser.perturbation.balls",
    "Local": "infuser.executors",
    "LossTrace": "infuser.attribution.loss_trace",
    "PGD": "infuser.perturbation.pgd",
    "Pool": "infuser.executors",
    "PostEdit": "infuser.perturbation.select",
    "Recipe": "infuser.types",
    "Run": "infuser.checkpoints",
    "Scores": "infuser.types",
    "Suspicion": "infuser.types",
    "TRAK": "infuser.attribution.trak",
    "TracIn": "infuser.attribution.tracin",
    "Trials": "infuser.types",
    "Unrolled": "infuser.attribution.unrolled",
    "UnrolledPGD": "infuser.perturbation.unrolled_pgd",
    "adapters": "infuser.adapters",
    "arms": "infuser.evaluation.arms",
    "attribute": "infuser.attribution.attribute",
    "compare": "infuser.evaluation.compare",
    "data": "infuser.data",
    "detect": "infuser.detection.detect",
    "detection": "infuser.detection",
    "find": "infuser.evaluation.finding",
    "fit_dense": "infuser.curvature.dense",
    "fit_ekfac": "infuser.curvature.ekfac",
    "fit_kfac": "infuser.curvature.kfac",
    "flips": "infuser.evaluation.metrics",
    "identity": "infuser.curvature.identity",
    "lds": "infuser.evaluation.truth",
    "leave_some_out": "infuser.evaluation.truth",
    "load_edit": "infuser.perturbation.manifest",
    "measure": "infuser.measure",
    "models": "infuser.models",
    "perturb": "infuser.perturbation.perturb",
    "report": "infuser.report",
    "retrain": "infuser.evaluation.retrain",
    "save_edit": "infuser.perturbation.manifest",
    "self_influence": "infuser.attribution.influence",
    "train": "infuser.training",
    "transfer": "infuser.evaluation.transfer",
    "true_influence": "infuser.evaluation.true_mu",
    "write_images": "infuser.perturbation.export",
}
__all__ = sorted([*_WHERE, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("infuser")
    if name not in _WHERE:
        raise AttributeError(f"module 'infuser' has no attribute {name!r}")
    module = import_module(_WHERE[name])
    return module if module.__name__ == f"infuser.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
