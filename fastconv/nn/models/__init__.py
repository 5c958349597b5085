"""Networks that people know, one family a file."""

from __future__ import annotations

from collections.abc import Callable

from fastconv.nn.layers import Sequential
from fastconv.nn.models.alexnet import alexnet
from fastconv.nn.models.googlenet import googlenet
from fastconv.nn.models.lenet import lenet5
from fastconv.nn.models.mobilenet import mobilenet_v1
from fastconv.nn.models.resnet import resnet18, resnet50
from fastconv.nn.models.simple import simple_conv_net
from fastconv.nn.models.vgg import vgg16

__all__ = [
    "MODELS", "alexnet", "googlenet", "lenet5", "mobilenet_v1", "resnet18", "resnet50", "simple_conv_net", "vgg16",
]  # fmt: skip

# What `fastconv train` offers: networks that learn the digits in seconds.
MODELS: dict[str, Callable[..., Sequential]] = {"simple": simple_conv_net, "lenet": lenet5}
