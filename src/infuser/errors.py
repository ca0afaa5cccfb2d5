"""The one exception of infuser: a fact, what was got, what was expected, the likely causes and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class InfuserError(Exception):
    """A request that cannot be carried out, said so that the caller can mend it.

    Args:
        fact: what is wrong, in one sentence without a final full stop.
        got: the offending value, with document ids where there are any.
        expected: what would have been accepted.
        causes: the likely reasons, the likeliest first.
        remedy: what to do next.

    >>> print(InfuserError("k is larger than the data set", got="k = 7", expected="at most 5", remedy="lower k"))
    k is larger than the data set. Got: k = 7. Expected: at most 5. Remedy: lower k.
    """

    def __init__(
        self,
        fact: str,
        *,
        got: object = None,
        expected: object = None,
        causes: Sequence[str] = (),
        remedy: str | None = None,
    ) -> None:
        self.fact, self.got, self.expected, self.causes, self.remedy = fact, got, expected, tuple(causes), remedy
        parts = [fact]
        if got is not None:
            parts.append(f"Got: {got}")
        if expected is not None:
            parts.append(f"Expected: {expected}")
        if len(self.causes) == 1:
            parts.append(f"Likely cause: {self.causes[0]}")
        elif self.causes:
            listed = "; ".join(f"({letter}) {cause}" for letter, cause in zip("abcdefgh", self.causes, strict=False))
            parts.append(f"Likely causes: {listed}")
        if remedy:
            parts.append(f"Remedy: {remedy}")
        super().__init__(". ".join(part.rstrip(".") for part in parts) + ".")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive the trip from a worker process without this.
        return _rebuild, (self.fact, self.got, self.expected, self.causes, self.remedy)


def _rebuild(fact: str, got: object, expected: object, causes: Sequence[str], remedy: str | None) -> InfuserError:
    return InfuserError(fact, got=got, expected=expected, causes=causes, remedy=remedy)


def require(name: str, got: object, holds: bool, expected: str) -> None:
    """Raise an InfuserError saying that setting `name` is out of range, unless it `holds`."""
    if not holds:
        raise InfuserError(f"{name} is out of range", got=got, expected=expected)


def listed(items: Sequence[object], limit: int = 8) -> str:
    """Return at most `limit` items as text, with the number left out.

    >>> listed([1, 2, 3], limit=2)
    '1, 2 and 1 more'
    """
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
