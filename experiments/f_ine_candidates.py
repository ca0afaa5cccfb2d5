"""Statistics of one run's signals, tried in place of mode snr: functions of the T x N table alone.

own_t(i) = lr |g_i|^2, outside_t(i) = mean over others of lr <g_i, g_j>, noise_t(i) = lr^2 Var_j <g_i, g_j> / B,
loss_t(i) the loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SMALL = 1e-12


def candidates(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return name -> (N,) statistic, higher = more influential on itself."""
    own, outside, noise, loss = (
        table[f"table {name}"].astype(np.float64) for name in ("inside", "outside", "noise", "losses")
    )
    drift, spread = own - outside, np.sqrt(noise + SMALL)
    snr = drift.sum(0) / np.sqrt(noise.sum(0) + SMALL)
    mean = loss.mean(0)
    half = len(loss) // 2
    tried = {
        "snr": snr,
        "mean loss": mean,
        "within-step z, mean": (drift / spread).mean(0),
        "within-step z, median": np.median(drift / spread, axis=0),
        "gradient norm, mean": np.sqrt(own).mean(0),
        "log gradient norm, mean": np.log(own + SMALL).mean(0),
        "snr, first half": drift[:half].sum(0) / np.sqrt(noise[:half].sum(0) + SMALL),
        "snr x mean loss": np.maximum(snr, 0) * mean,
        "snr + mean loss, ranks": ranks(snr) + ranks(mean),
        "snr weighted by loss": (loss * drift).sum(0) / np.sqrt((loss**2 * noise).sum(0) + SMALL),
        "drift over norm": drift.sum(0) / np.sqrt(own.sum(0) + SMALL),
        "snr over mean gradient norm": snr / np.sqrt(own.mean(0) + SMALL),
        "loss over noise": loss.sum(0) / np.sqrt(noise.sum(0) + SMALL),
        "share of steps above the median loss": (loss > np.median(loss, axis=1, keepdims=True)).mean(0),
        "mean rank of the loss": np.mean([ranks(row) for row in loss], axis=0),
        "mean rank of own": np.mean([ranks(row) for row in own], axis=0),
        "mean rank of own and loss": np.mean([ranks(a) + ranks(b) for a, b in zip(own, loss, strict=True)], axis=0),
    }
    tried["snr x within-step z"] = np.maximum(snr, 0) * np.maximum(tried["within-step z, mean"], 0)
    tried["snr x sqrt mean loss"] = np.maximum(snr, 0) * np.sqrt(mean)
    tried["within-step z x mean loss"] = np.maximum(tried["within-step z, mean"], 0) * mean
    return tried


def ranks(values: np.ndarray) -> np.ndarray:
    order = np.empty(len(values))
    order[np.argsort(values, kind="stable")] = np.arange(len(values))
    return order / len(values)
