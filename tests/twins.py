"""The networks of fastconv.nn.models, built from torch's layers under torchvision's names."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.nn.models.googlenet import INCEPTIONS


def vgg16(classes: int = 1000, width: int = 64) -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for entry in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
        if entry:
            layers += [nn.Conv2d(before, entry * width, 3, padding=1), nn.ReLU()]
            before = entry * width
        else:
            layers.append(nn.MaxPool2d(2))
    hidden = 64 * width
    head = nn.Sequential(
        nn.Linear(before * 49, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Dropout(), nn.Linear(hidden, classes),
    )  # fmt: skip
    return _classifier(nn.Sequential(*layers), 7, head)


def alexnet(classes: int = 1000, width: int = 64) -> nn.Module:
    a, b, c, d = width, 3 * width, 6 * width, 4 * width
    features = nn.Sequential(
        nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(a, b, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
        nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    hidden = 64 * width
    head = nn.Sequential(
        nn.Dropout(), nn.Linear(36 * d, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    return _classifier(features, 6, head)


def _classifier(features: nn.Module, pooled: int, classifier: nn.Module) -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(pooled)
    return nn.Sequential(
        OrderedDict(features=features, avgpool=pool, flatten=nn.Flatten(), classifier=classifier)
    )


class Block(nn.Module):  # type: ignore[misc]
    """A residual block of two convolutions, or of three with a bottleneck."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        outs = (width, width, after) if bottleneck else (width, width)
        self.count = len(kernels)
        channels = before
        for number, (k, s, o) in enumerate(zip(kernels, strides, outs, strict=True), 1):
            setattr(self, f"conv{number}", nn.Conv2d(channels, o, k, s, k // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(o))
            channels = o
        self.downsample: nn.Module | None = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = torch.relu(y) if number < self.count else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet18(classes: int = 1000, width: int = 64) -> nn.Module:
    return _resnet((2, 2, 2, 2), False, classes, width)


def resnet50(classes: int = 1000, width: int = 64) -> nn.Module:
    return _resnet((3, 4, 6, 3), True, classes, width)


def _resnet(depths: tuple[int, ...], bottleneck: bool, classes: int, width: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, width, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1),
    )  # fmt: skip
    before = width
    for stage, depth in enumerate(depths):
        blocks = []
        for place in range(depth):
            blocks.append(Block(before, width << stage, 2 if stage and not place else 1, bottleneck))
            before = (4 if bottleneck else 1) * (width << stage)
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(before, classes)}
    return nn.Sequential(layers)


class Unit(nn.Module):  # type: ignore[misc]
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):  # type: ignore[misc]
    """Four branches, concatenated."""

    def __init__(self, before: int, row: tuple[int, ...], widest: int) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = row
        self.branch1 = Unit(before, one, 1)
        self.branch2 = nn.Sequential(Unit(before, reduce3, 1), Unit(reduce3, three, 3))
        self.branch3 = nn.Sequential(Unit(before, reduce5, 1), Unit(reduce5, five, widest))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), Unit(before, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet(classes: int = 1000, widest: int = 3) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=Unit(3, 64, 7, 2), maxpool1=nn.MaxPool2d(3, 2, ceil_mode=True), conv2=Unit(64, 64, 1),
        conv3=Unit(64, 192, 3), maxpool2=nn.MaxPool2d(3, 2, ceil_mode=True),
    )  # fmt: skip
    before = 192
    for name, row in INCEPTIONS.items():
        pool = name.startswith("maxpool")
        layers[name] = nn.MaxPool2d(*row, ceil_mode=True) if pool else Inception(before, row, widest)
        before = before if pool else row[0] + row[2] + row[4] + row[5]
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(0.2)}
    return nn.Sequential(OrderedDict(**layers, fc=nn.Linear(before, classes)))


def mobilenet_v1(classes: int = 1000, width: int = 32) -> nn.Module:
    channels = [width * m for m in (1, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32)]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    layers: list[Any] = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for before, after, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [
            nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before), nn.ReLU(),
            nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers), avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
            classifier=nn.Linear(channels[-1], classes),
        )
    )  # fmt: skip
