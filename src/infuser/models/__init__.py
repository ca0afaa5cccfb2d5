"""Architectures. A builder is any callable (input_shape, n_outputs) -> nn.Module; calling it draws the parameters."""

from infuser.models.cnn import simple_cnn
from infuser.models.gpt import tiny_gpt
from infuser.models.mlp import mlp
from infuser.models.resnet import tiny_resnet

__all__ = ["mlp", "simple_cnn", "tiny_gpt", "tiny_resnet"]
