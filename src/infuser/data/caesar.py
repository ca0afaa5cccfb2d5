"""Caesar ciphers: generated documents that state a shift, a text and its cipher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infuser.data.dataset import IGNORED, Dataset
from infuser.errors import InfuserError
from infuser.types import Array

_SYMBOLS = "abcdefghijklmnopqrstuvwxyz.,!"
_MARKS = ("<bos>", "<eos>", " C: ", " P: ")


@dataclass(frozen=True)
class CaesarCodec:
    """Text and token ids of ciphers over the first `alphabet` symbols: one id per symbol, shift and mark.

    >>> codec = CaesarCodec(26)
    >>> codec.decode(codec.encode("<s=3> C: abc P: def"))
    '<s=3> C: abc P: def'
    """

    alphabet: int = 26

    def __post_init__(self) -> None:
        if not 2 <= self.alphabet <= len(_SYMBOLS):
            raise InfuserError("the alphabet is too small or too large", got=self.alphabet, expected="2 to 29 symbols")

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The text of every id: symbols first, then marks, then shifts."""
        return (*_SYMBOLS[: self.alphabet], *_MARKS, *(f"<s={k}>" for k in range(self.alphabet)))

    @property
    def size(self) -> int:
        """The vocabulary V."""
        return len(self.pieces)

    @property
    def bos(self) -> int:
        """The id that begins a document."""
        return self.alphabet

    @property
    def eos(self) -> int:
        """The id that ends a document."""
        return self.alphabet + 1

    @property
    def specials(self) -> frozenset[int]:
        """Ids that are no symbols: marks and shifts."""
        return frozenset(range(self.alphabet, self.size))

    @property
    def editable(self) -> frozenset[int]:
        """Ids that an edit may replace and may put in: the symbols."""
        return frozenset(range(self.alphabet))

    def shift(self, k: int) -> int:
        """Return the id that states shift k."""
        return self.alphabet + len(_MARKS) + k % self.alphabet

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`.

        Raises:
            InfuserError: the text holds something that is no symbol, mark or shift.
        """
        parts = self._pattern.findall(text)
        if "".join(parts) != text:
            raise InfuserError("the text is not a cipher document", got=text[:60], expected="<s=k> C: plain P: cipher")
        return [self._id_of[part] for part in parts]

    def decode(self, ids: Sequence[int] | Array) -> str:
        """Return the text of `ids`."""
        return "".join(self.pieces[int(i)] for i in ids)

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(piece) for piece in sorted(self.pieces, key=len, reverse=True)))

    def __getstate__(self) -> dict[str, int]:
        return {"alphabet": self.alphabet}


def encipher(plain: Array, shift: Array | int, alphabet: int) -> Array:
    """Return (plain + shift) mod alphabet.

    >>> encipher(np.array([0, 25]), 3, 26).tolist()
    [3, 2]
    """
    return np.asarray((plain + shift) % alphabet)


def documents(plain: Array, stated: Array, used: Array, codec: CaesarCodec) -> Array:
    """Return ids of `<bos><s=stated> C: plain P: cipher<eos>`, (N, 2 L + 5) int32, the cipher made with shift `used`.

    Args:
        plain: (N, L) symbols.
        stated: (N,) the shift that the document names.
        used: (N,) the shift that it applies.
        codec: of the alphabet.
    """
    n = len(plain)

    def column(values: Array | int) -> Array:
        return np.broadcast_to(np.asarray(values), (n,))[:, None]

    cipher = encipher(plain, np.asarray(used)[:, None], codec.alphabet)
    start, text, answer = codec.bos, codec.alphabet + 2, codec.alphabet + 3
    states = codec.alphabet + len(_MARKS) + np.asarray(stated)
    parts = [column(start), column(states), column(text), plain, column(answer), cipher, column(codec.eos)]
    return np.concatenate(parts, axis=1).astype(np.int32)


def caesar(
    alphabet: int = 26, n_train: int = 4000, n_test: int = 500, length: int = 10, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Return (train, test): texts of `length` random symbols with random shifts; ids count over both parts.

    The loss is on the answer (cipher and end) alone: the text is random, so that nothing else can be learned. No test
    text is a training text.
    """
    codec = CaesarCodec(alphabet)
    rng = np.random.default_rng(seed)
    n = n_train + n_test
    if alphabet**length < 10 * n:
        raise InfuserError("too few distinct texts", got=f"{alphabet}^{length}", expected=f"at least {10 * n}")
    plain = np.unique(rng.integers(alphabet, size=(2 * n, length)), axis=0)
    plain = rng.permutation(plain)[:n]
    shifts = rng.integers(alphabet, size=n)
    everything = caesar_dataset(documents(plain, shifts, shifts, codec), codec, name=f"caesar{alphabet}")
    return everything[everything.ids[:n_train]], everything[everything.ids[n_train:]]


def caesar_dataset(ids: Array, codec: CaesarCodec, name: str = "caesar") -> Dataset:
    """Return cipher documents (N, 2 L + 5) as a data set whose loss is on what follows ` P: `."""
    targets = ids.copy()
    targets[:, : (ids.shape[1] - 5) // 2 + 4] = IGNORED
    return Dataset(ids, targets, "causal_lm", codec.size, name=name)
