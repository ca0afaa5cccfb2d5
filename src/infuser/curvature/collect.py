"""What a forward and a backward pass leave at the layers: inputs and output gradients, and no weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from infuser.curvature.forms import EmbeddingForm, Form
from infuser.curvature.layers import Grads, Input, Inputs, Layer
from infuser.errors import InfuserError, listed
from infuser.tasks import Task
from infuser.types import Batch, Params

Cotangents = Callable[[Tensor], Iterable[Tensor | None]]


@dataclass(frozen=True)
class Captured:
    """Inputs `a` and output gradients `g` of every layer for one batch: `a, g = captured[layer]`.

    Attributes:
        outputs: (B, ...) of the model, detached.
        losses: (B,) at the true labels, detached.
        mask: (B, T) True at real positions, or None where all are.
    """

    outputs: Tensor
    losses: Tensor
    mask: Tensor | None
    inputs: Mapping[str, Inputs] = field(repr=False)
    grads: Mapping[str, Grads] = field(repr=False)

    def __getitem__(self, layer: Layer) -> tuple[Inputs, Grads]:
        return self.inputs[layer.names[0]], self.grads[layer.names[0]]

    def __len__(self) -> int:
        return len(self.losses)


@dataclass(frozen=True)
class _Call:
    form: Form
    layers: tuple[str, ...]
    x: Tensor
    edge: GradientEdge
    shape: tuple[int, ...]
    unclear: bool  # one id for each document, or one for each of as many positions


def collect(
    model: nn.Module,
    params: Params,
    task: Task,
    batch: Batch,
    layers: Sequence[Layer],
    cotangent: Tensor | None = None,
) -> Captured:
    """Return inputs and output gradients of `layers`: one forward pass, one backward pass to activations.

    Args:
        model: evaluated in eval mode (its own mode is put back).
        params: the point of evaluation.
        task: of the data.
        batch: documents.
        layers: of `find_layers`.
        cotangent: gradient of the outputs, (B, ...); None for that of the summed loss at the true labels, so that g is
            each document's own.

    Raises:
        InfuserError: a layer's module is not called, or an input cannot be split into documents.
    """
    return next(iter(captures(model, params, task, batch, layers, lambda _: (cotangent,))))


def captures(
    model: nn.Module, params: Params, task: Task, batch: Batch, layers: Sequence[Layer], cotangents: Cotangents
) -> Iterator[Captured]:
    """Yield what `collect` returns for each of cotangents(outputs): one forward pass, one backward pass each."""
    detached = {name: value.detach() for name, value in params.items()}
    with torch.enable_grad(), _eval_mode(model):
        outputs, calls = _recorded(model, detached, task.feed(batch.inputs), layers)
        _require_called(layers, calls)
        losses = task.loss(outputs, batch.targets)
        wanted = list(cotangents(outputs.detach()))
        for i, cotangent in enumerate(wanted):
            grads = torch.autograd.grad(
                losses.sum() if cotangent is None else outputs,
                [call.edge for call in calls],
                None if cotangent is None else cotangent,
                retain_graph=i + 1 < len(wanted),
                allow_unused=True,
            )
            yield _captured(outputs, losses, task.mask(batch), calls, grads)


def _captured(
    outputs: Tensor, losses: Tensor, mask: Tensor | None, calls: Sequence[_Call], grads: Sequence[Tensor | None]
) -> Captured:
    inputs: dict[str, Inputs] = {}
    gradients: dict[str, Grads] = {}
    for call, grad in zip(calls, grads, strict=True):
        filled = outputs.new_zeros(call.shape) if grad is None else grad
        x, g = (_in_full(value, losses) for value in call.form.arrange(call.x, filled, len(losses)))
        for name in call.layers:
            inputs[name] = (*inputs.get(name, ()), Input(call.form, x))
            gradients[name] = (*gradients.get(name, ()), g)
    return Captured(outputs.detach(), losses.detach(), mask, inputs, gradients)


def _in_full(value: Tensor, losses: Tensor) -> Tensor:
    """Return what autocast left in half precision in that of the losses: sums over positions are taken in it."""
    return value.to(losses.dtype) if value.is_floating_point() else value


def _recorded(model: nn.Module, params: Params, fed: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, list[_Call]]:
    """Return the outputs and every call of the layers' modules."""

    def recorded(inputs: Tensor, shared: Container[int] = ()) -> tuple[Tensor, list[_Call]]:
        with _recording(model, layers, len(inputs), shared) as calls:
            outputs = functional_call(model, params, (inputs,))
        return outputs, calls

    outputs, calls = recorded(fed)
    unclear = [i for i, call in enumerate(calls) if call.unclear]
    if not unclear:
        return outputs, calls
    # Ids of positions stay as many when the documents are fewer or more; those of documents do not.
    others = recorded(fed[:2] if len(fed) > 2 else fed[[0, 1, 0]])[1]
    shared = [i for i in unclear if others[i].x.ndim > calls[i].x.ndim]
    return recorded(fed, shared) if shared else (outputs, calls)


@contextmanager
def _recording(
    model: nn.Module, layers: Sequence[Layer], documents: int, shared: Container[int]
) -> Iterator[list[_Call]]:
    """Record every call of the layers' modules; the hooks are gone when the block ends.

    Args:
        model: whose modules are called.
        layers: to record.
        documents: B.
        shared: numbers of calls whose ids (B,) are those of positions, which all documents share.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    users: dict[str, list[tuple[str, Form]]] = {}
    for layer in layers:
        for form in layer.forms:
            users.setdefault(form.module, []).append((layer.names[0], form))
    calls: list[_Call] = []

    def record(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            x = (args or tuple(kwargs.values()))[0].detach()
            unclear = False
            if isinstance(users[name][0][1], EmbeddingForm):
                each = x.shape == (documents,) and len(calls) not in shared
                unclear = each and documents > 1
                if not each:
                    x, output = _per_document(x, output, documents)
            if not output.requires_grad:
                # Nothing before this layer depends on a tensor with a gradient, as no parameter has one here. The copy
                # gives the output a place in the graph that later in-place operations do not move.
                output = output.detach().requires_grad_().clone()
            edge = get_gradient_edge(output)
            for form in dict.fromkeys(form for _, form in users[name]):
                owners = tuple(layer for layer, own in users[name] if own == form)
                calls.append(_Call(form, owners, x, edge, tuple(output.shape), unclear))
            return output

        return hook

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles += [modules[name].register_forward_hook(record(name), with_kwargs=True) for name in users]
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _per_document(ids: Tensor, output: Tensor, documents: int) -> tuple[Tensor, Tensor]:
    """Repeat what is looked up once for all documents (positions) for each, so that its gradient is per document."""
    if ids.ndim == 1:
        ids, output = ids[None], output[None]
    if len(ids) == 1 and documents > 1:
        return ids.expand(documents, *ids.shape[1:]), output.expand(documents, *output.shape[1:])
    return ids, output


def _require_called(layers: Sequence[Layer], calls: Sequence[_Call]) -> None:
    called = {call.form.module for call in calls}
    idle = [form.module for layer in layers for form in layer.forms if form.module not in called]
    if idle:
        raise InfuserError(
            "layers are never called by the model's forward pass",
            got=listed(idle, 20),
            causes=["their weights are used without calling the module", "they are not used in eval mode"],
            remedy="leave their parameters out with find_layers(model, names=...)",
        )


@contextmanager
def full_precision() -> Iterator[None]:
    """A context, or a decorator, in which no autocast of the caller's holds."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    if not any(training for _, training in modes):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@full_precision()
def verify(model: nn.Module, params: Params, task: Task, batch: Batch, layers: Sequence[Layer]) -> None:
    """Compare the layers' per-document gradients with autograd's, on a batch of a few documents.

    Captured inputs cannot show that a weight is also used outside its module, that a module's forward is not what its
    class says, or that documents are not on the first axis; a comparison can.

    Raises:
        InfuserError: they are not finite, or differ by more than one part in a thousand; all such layers are listed.
    """
    captured = collect(model, params, task, batch, layers)
    mine = {name: grad for layer in layers for name, grad in layer.gradients(*captured[layer]).items()}
    broken = [name for name, grad in mine.items() if not bool(grad.isfinite().all())]
    if broken:
        raise InfuserError(
            "per-document gradients are not finite",
            got=f"parameters {listed(broken, 20)}, documents {listed(batch.ids.tolist())}",
            causes=["the model's weights diverged", "an input is extreme", "activations overflow in this precision"],
            remedy="look at the loss of this checkpoint",
        )
    leaves = {name: p.detach().requires_grad_(name in mine) for name, p in params.items()}
    wrong: dict[str, None] = {}
    with torch.enable_grad(), _eval_mode(model):
        losses = task.loss(functional_call(model, leaves, (task.feed(batch.inputs),)), batch.targets)
        wanted = [leaves[name] for name in mine]
        for i, loss in enumerate(losses):  # one document's gradients at a time: they are as large as the model
            true = torch.autograd.grad(loss, wanted, retain_graph=i + 1 < len(losses), materialize_grads=True)
            total = torch.stack([grad.norm() for grad in true]).norm()
            for (name, got), grad in zip(mine.items(), true, strict=True):
                if not bool((got[i] - grad).norm() <= 1e-3 * grad.norm() + 1e-5 * total):
                    wrong[name] = None
    if wrong:
        raise InfuserError(
            "per-document gradients of some layers differ from autograd's",
            got=f"parameters {listed(list(wrong), 20)}",
            causes=[
                "the weight is also used outside its module",
                "the module has a forward pass of its own",
                "the model moves or mixes documents along the batch axis",
            ],
            remedy="leave these parameters out with find_layers(model, names=...)",
        )
