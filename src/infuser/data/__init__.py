"""Data sets: one loader a file, each returning `Dataset` values. Everything read from disk is treated as untrusted."""

from infuser.data.caesar import caesar
from infuser.data.cifar10 import cifar10
from infuser.data.dataset import Dataset
from infuser.data.digits import digits
from infuser.data.folder import folder
from infuser.data.hub import hub
from infuser.data.mnist import fashion_mnist, mnist
from infuser.data.parquet import parquet
from infuser.data.source import files, load, split, subset, texts

__all__ = [
    "Dataset",
    "caesar",
    "cifar10",
    "digits",
    "fashion_mnist",
    "files",
    "folder",
    "hub",
    "load",
    "mnist",
    "parquet",
    "split",
    "subset",
    "texts",
]
