"""Networks that people know, one family a file."""

from __future__ import annotations

from collections.abc import Callable

from fastconv.nn.layers import Sequential
from fastconv.nn.models.lenet import lenet5
from fastconv.nn.models.resnet import resnet18, resnet50
from fastconv.nn.models.simple import simple_conv_net
from fastconv.nn.models.vgg import vgg16

__all__ = ["MODELS", "lenet5", "resnet18", "resnet50", "simple_conv_net", "vgg16"]

# What `fastconv train` offers: networks that learn the digits in seconds.
MODELS: dict[str, Callable[..., Sequential]] = {"simple": simple_conv_net, "lenet": lenet5}
