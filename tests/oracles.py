"""Dense computations by autograd that share no code with what they judge. Everything is meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from infuser.data.dataset import Dataset
from infuser.tasks import Task, task_of


def leaves(model: nn.Module) -> dict[str, Tensor]:
    """Return trainable parameters, detached, with requires_grad."""
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module, data: Dataset) -> dict[str, Tensor]:
    """Return each document's loss gradient by a backward pass of its own, (N, *shape); documents pass alone."""
    task, params = task_of(data), leaves(model)
    rows = []
    for batch in data.batches(1):
        loss = task.loss(functional_call(model, params, (task.feed(batch.inputs),)), batch.targets).sum()
        rows.append(torch.autograd.grad(loss, list(params.values()), materialize_grads=True))
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(params)}


def rows_of(grads: dict[str, Tensor]) -> Tensor:
    """Return (N, P) in the order of the names."""
    return torch.cat([grad.flatten(1) for grad in grads.values()], 1)


def empirical_fisher(model: nn.Module, data: Dataset) -> Tensor:
    """Return (1/N) sum of g g^T over documents, (P, P)."""
    rows = rows_of(gradients(model, data))
    return rows.T @ rows / len(rows)


def gauss_newton(model: nn.Module, data: Dataset) -> Tensor:
    """Return (1/N) sum J^T (d^2 loss / d outputs^2) J over documents, (P, P)."""
    task, params = task_of(data), leaves(model)
    size = sum(p.numel() for p in params.values())
    total = torch.zeros(size, size, dtype=torch.float64)
    for batch in data.batches(1):
        outputs = functional_call(model, params, (task.feed(batch.inputs),))
        flat = outputs.flatten()
        jacobian = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(y, list(params.values()), retain_graph=True)])
                for y in flat
            ]
        )
        curvature = _loss_hessian(task, outputs.detach(), batch.targets)
        total += jacobian.T @ curvature @ jacobian
    return total / len(data)


def _loss_hessian(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    return hessian(lambda y: task.loss(y.view_as(outputs), targets).sum())(outputs.flatten())


def as_matrix(apply: object, like: dict[str, Tensor]) -> Tensor:
    """Return the (P, P) matrix of a linear map Params -> Params with a leading query axis."""
    sizes = [value.numel() for value in like.values()]
    unit = torch.eye(sum(sizes), dtype=torch.float64)
    parts = torch.split(unit, sizes, dim=1)
    vectors = {name: part.reshape(-1, *like[name].shape) for (name, part) in zip(like, parts, strict=True)}
    result = apply(vectors)  # type: ignore[operator]
    return rows_of({name: result[name] for name in like})


def positions_of(names: tuple[str, ...], like: dict[str, Tensor]) -> Tensor:
    """Return where the entries of some parameters stand in the flat vector."""
    found, start = [], 0
    for name, value in like.items():
        if name in names:
            found.append(torch.arange(start, start + value.numel()))
        start += value.numel()
    return torch.cat(found)
