"""Data sets: one loader a file, each returning `Dataset` values."""

from infuser.data.dataset import Dataset
from infuser.data.digits import digits

__all__ = ["Dataset", "digits"]
