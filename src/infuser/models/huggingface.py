"""Causal language models of Hugging Face transformers, whole or with LoRA adapters, as modules of token ids.

A local folder or a hub name; safetensors only, and no code of the model's authors is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from infuser.errors import InfuserError, listed
from infuser.types import Array

T = TypeVar("T")


class CausalModule(nn.Module):
    """A transformers model as a function: (B, T) token ids, or (B, T, V) rows on the simplex, to logits (B, T, V).

    Padding is on the right, where a causal model cannot see it, so no attention mask is needed.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits."""
        if not tokens.is_floating_point():
            return cast(Tensor, self.inner(input_ids=tokens, use_cache=False).logits)
        embedding = cast(Any, self.inner).get_input_embeddings()
        # Through the module rather than its weight: some models scale what they look up.
        table = embedding(torch.arange(tokens.shape[-1], device=tokens.device))
        return cast(Tensor, self.inner(inputs_embeds=tokens @ table, use_cache=False).logits)


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters; they alone are trained.

    Attributes:
        rank: of each adapter.
        alpha: the adapter's output is multiplied by alpha / rank.
        targets: ends of the names of the layers that get one.
        folder: an adapter stored by peft; its own settings then replace the others.

    Source: Hu et al., LoRA, arXiv 2106.09685.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    folder: str | None = None


@dataclass(frozen=True)
class HuggingFace:
    """A builder: (input_shape, n_outputs) -> CausalModule in float32.

    Attributes:
        name: a folder, or a name on the hub.
        attention: the kernel: the model's default, the fused one, or the written-out one (slower; every derivative).
        lora: adapters to train instead of the model's own weights.
        pretrained: with the stored weights, else drawn anew (the folder then needs config.json alone).
    """

    name: str
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    lora: LoRA | None = None
    pretrained: bool = True

    def __call__(self, input_shape: tuple[int, ...], n_outputs: int) -> CausalModule:
        """Return the module for documents of input_shape[0] tokens.

        Raises:
            InfuserError: the folder holds no causal model in safetensors, documents are longer than its context, or
                the vocabulary is another one.
        """
        import transformers

        config = _loaded(lambda: transformers.AutoConfig.from_pretrained(self.name, trust_remote_code=False), self.name)
        context = getattr(config, "max_position_embeddings", None)
        if len(input_shape) != 1 or (context is not None and input_shape[0] > context):
            raise InfuserError(
                f"the documents do not fit the context of {self.name}",
                got=input_shape,
                expected=f"(T,) with T at most {context}",
                remedy="build the data set with context= the model's",
            )
        if n_outputs != config.vocab_size:
            remedy = "encode the documents with the model's own tokenizer"
            raise InfuserError("another vocabulary", got=n_outputs, expected=config.vocab_size, remedy=remedy)
        auto: Any = transformers.AutoModelForCausalLM
        options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
        if self.attention != "auto":
            options["attn_implementation"] = self.attention
        with _quiet():
            if self.pretrained:
                inner = _loaded(lambda: auto.from_pretrained(self.name, use_safetensors=True, **options), self.name)
            else:
                inner = _loaded(lambda: auto.from_config(config, **options), self.name)
        return CausalModule(inner if self.lora is None else _with_adapters(inner, self.lora))

    def codec(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return Tokenizer(self.name)


@dataclass(frozen=True)
class Tokenizer:
    """A transformers tokenizer as a Codec: text without special tokens to ids and back.

    Attributes:
        name: a folder, or a name on the hub.
    """

    name: str

    @cached_property
    def _inner(self) -> Any:
        import transformers

        load = transformers.AutoTokenizer.from_pretrained
        return _loaded(lambda: load(self.name, trust_remote_code=False), self.name)

    @cached_property
    def size(self) -> int:
        """The vocabulary V: the model's, which may be padded beyond the tokenizer's."""
        import transformers

        try:
            config: Any = transformers.AutoConfig.from_pretrained(self.name, trust_remote_code=False)
        except (OSError, ValueError, KeyError):  # a tokenizer that lies without a model
            return len(self._inner)
        return max(len(self._inner), int(getattr(config, "vocab_size", 0)))

    @property
    def bos(self) -> int | None:
        """The id that begins a document, if there is one."""
        return cast("int | None", self._inner.bos_token_id)

    @property
    def eos(self) -> int | None:
        """The id that ends a document, if there is one."""
        return cast("int | None", self._inner.eos_token_id)

    @cached_property
    def specials(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return frozenset(self._inner.all_special_ids)

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The text of every id as it reads behind a letter, so that a leading space shows."""
        anchor = self.encode("a")[-1]
        skip = len(self.decode([anchor]))
        return tuple(self.decode([anchor, i])[skip:] for i in range(self.size))

    @cached_property
    def editable(self) -> frozenset[int]:
        """Ids of letters alone, with at most one leading space."""
        return frozenset(
            i
            for i, piece in enumerate(self.pieces)
            if i not in self.specials and piece.removeprefix(" ").isalpha() and "\N{REPLACEMENT CHARACTER}" not in piece
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens."""
        return cast("list[int]", self._inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int] | Array) -> str:
        """Return the text of `ids`."""
        plain = [int(i) for i in ids]
        return cast(str, self._inner.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def __getstate__(self) -> dict[str, str]:
        return {"name": self.name}


def _with_adapters(inner: nn.Module, lora: LoRA) -> nn.Module:
    import peft

    if lora.folder is not None:
        folder = lora.folder
        model = _loaded(lambda: peft.PeftModel.from_pretrained(inner, folder, is_trainable=True), folder)
        return cast(nn.Module, model)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    try:
        return cast(nn.Module, peft.get_peft_model(cast(Any, inner), settings))
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in inner.named_modules() if isinstance(m, nn.Linear)})
        raise InfuserError("no layer has the names to adapt", got=lora.targets, expected=listed(names)) from error


def _loaded(load: Callable[[], T], name: str) -> T:
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        raise InfuserError(
            f"cannot load {name}",
            got=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            expected="a causal language model or adapter with config and safetensors files",
            causes=["the folder or hub name is wrong", "it is no causal language model", "its weights are pickled"],
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as module

    logging: Any = module
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
