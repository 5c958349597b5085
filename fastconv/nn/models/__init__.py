"""Networks that people know, one family a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastconv.nn.layers import Sequential
from fastconv.nn.models.alexnet import alexnet
from fastconv.nn.models.googlenet import googlenet
from fastconv.nn.models.lenet import lenet5
from fastconv.nn.models.mobilenet import mobilenet_v1
from fastconv.nn.models.resnet import resnet18, resnet50
from fastconv.nn.models.simple import simple_conv_net
from fastconv.nn.models.vgg import vgg16

__all__ = [
    "MODELS", "SMALL", "alexnet", "googlenet", "lenet5", "mobilenet_v1", "resnet18", "resnet50", "simple_conv_net",
    "vgg16",
]  # fmt: skip

# Networks that learn the digits in seconds.
MODELS: dict[str, Callable[..., Sequential]] = {"simple": simple_conv_net, "lenet": lenet5}

# What `fastconv train` offers: these, and a ResNet-18 of an eighth of the channels, which takes a minute.
SMALL: dict[str, Callable[..., Sequential]] = {
    **MODELS, "resnet": partial(resnet18, 10, in_channels=1, width=8)
}  # fmt: skip
