"""Residual networks named, shaped and sized as torchvision's."""

import pytest
import torch

from ssl_models.config import Backbone
from ssl_models.models.presets import resolve_resnet
from ssl_models.models.resnet import ResNet


def network(preset: str, channels: int = 3, **fields: object) -> ResNet:
    return ResNet(resolve_resnet(Backbone(architecture="resnet", preset=preset, **fields)), channels)


@pytest.mark.parametrize(
    ("preset", "parameters", "width"), [("resnet18", 11_689_512, 512), ("resnet50", 25_557_032, 2048)]
)
def test_with_a_classifier_it_has_as_many_parameters_as_torchvision_s(preset, parameters, width):
    with torch.device("meta"):
        built = network(preset, stem="large")
    assert built.width == width
    assert sum(p.numel() for p in built.parameters()) + 1000 * width + 1000 == parameters


def test_weights_are_named_as_in_torchvision():
    with torch.device("meta"):
        small, large = network("resnet18").state_dict(), network("resnet50", stem="large").state_dict()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= small.keys()
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.num_batches_tracked"} <= small.keys()
    assert "layer1.0.downsample.0.weight" not in small
    assert large["conv1.weight"].shape == (64, 3, 7, 7)
    assert small["conv1.weight"].shape == (64, 3, 3, 3)
    assert {"layer1.0.downsample.0.weight", "layer3.5.conv3.weight"} <= large.keys()
    assert len(small) == 120 and len(large) == 318


@pytest.mark.parametrize("side", [1, 8, 17])
@pytest.mark.parametrize("preset", ["resnet18", "resnet50"])
def test_the_small_stem_shrinks_by_eight(preset, side):
    built = network(preset, channels=1, width=2).eval()
    pixels = torch.rand(2, 1, side, side)
    assert built(pixels).shape == (2, built.width, -(-side // 8), -(-side // 8))
    torch.testing.assert_close(built.features(pixels), built(pixels).mean(dim=(2, 3)))


def test_the_large_stem_shrinks_by_thirty_two():
    assert network("resnet18", stem="large", width=4)(torch.rand(2, 3, 224, 224)).shape[2:] == (7, 7)


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution():
    block = network("resnet50", width=4).layer2[0]
    assert block.conv1.stride == (1, 1) and block.conv2.stride == (2, 2)
