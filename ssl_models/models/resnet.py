"""ResNet-18 and ResNet-50 (He et al. 2015, arXiv 1512.03385) without their classifier.

Weights are named as torchvision names them (`layer1.0.conv1.weight`, `bn1`, `downsample.0`), and as there the stride
of a bottleneck sits in its 3x3 convolution. The stem for small pictures is a 3x3 convolution without pooling, as in
SimCLR's CIFAR-10 experiments (Chen et al. 2020, appendix B.9).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_models.models.presets import ResNetArchitecture

STAGES = 4


class _Residual(nn.Module):
    """What both blocks share: a shortcut, projected where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def shortcut(self, x: Tensor) -> Tensor:
        """`x`, in the shape of the block's output."""
        if self.downsample is None:
            return x
        projected: Tensor = self.downsample(x)
        return projected


class Basic(_Residual):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__(channels, width, stride)
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, width, height / stride, width / stride]`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(_Residual):
    """1x1, 3x3, 1x1, the last four times as wide."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        out = width * self.expansion
        super().__init__(channels, out, stride)
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to `[batch, 4 width, height / stride, width / stride]`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Pictures to a map of features."""

    def __init__(self, architecture: ResNetArchitecture, channels: int) -> None:
        super().__init__()
        kind = Basic if architecture.block == "basic" else Bottleneck
        wide = architecture.width
        small = architecture.stem == "small"
        self.conv1 = (
            nn.Conv2d(channels, wide, 3, 1, 1, bias=False) if small else nn.Conv2d(channels, wide, 7, 2, 3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(wide)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.width = wide
        for stage, blocks in enumerate(architecture.layers):
            width = wide * 2**stage
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(kind(self.width, width, 2 if stage and not block else 1))
                self.width = width * kind.expansion
            self.add_module(f"layer{stage + 1}", layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """Float pictures `[batch, channels, height, width]` to features `[batch, self.width, height / s, width / s]`,
        s = 8 with the small stem and 32 with the large, rounded up. To `trace` is appended each stage's output."""
        x = self.conv1(x).contiguous(memory_format=torch.channels_last)  # half the time on a CPU, less on a GPU
        x = self.maxpool(functional.relu(self.bn1(x)))
        for stage in range(STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            if trace is not None:
                trace.append(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """Pooled features `[batch, self.width]`."""
        mapped: Tensor = self(x)
        return mapped.mean(dim=(2, 3))
