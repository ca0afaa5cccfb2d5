"""Infuser in other people's code: f-INE in a loop or a Trainer of one's own, scores as an explainer of quanda."""

from __future__ import annotations

from infuser.adapters.own_loop import Watch
from infuser.adapters.quanda import Explainer, quanda_class
from infuser.adapters.trainer import trainer_callback, trainer_rows

__all__ = ["Explainer", "Watch", "quanda_class", "trainer_callback", "trainer_rows"]
