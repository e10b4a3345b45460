"""Architectures and the way from a configured name to a classifier; torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finesight.models.endovae import EndoVAE
    from finesight.models.inception import inception_v3
    from finesight.models.leaf_vit import LeafViT
    from finesight.models.mlp import MLP
    from finesight.models.pixelda import PixelDAClassifier, PixelDADiscriminator, PixelDAGenerator
    from finesight.models.resnet_cifar import ResNetCIFAR, resnet20
    from finesight.models.small_cnn import SmallCNN

__all__ = [
    "MLP",
    "EndoVAE",
    "LeafViT",
    "PixelDAClassifier",
    "PixelDADiscriminator",
    "PixelDAGenerator",
    "ResNetCIFAR",
    "SmallCNN",
    "inception_v3",
    "resnet20",
]

_HOME = {
    "EndoVAE": "endovae",
    "MLP": "mlp",
    "LeafViT": "leaf_vit",
    "PixelDAClassifier": "pixelda",
    "PixelDADiscriminator": "pixelda",
    "PixelDAGenerator": "pixelda",
    "ResNetCIFAR": "resnet_cifar",
    "SmallCNN": "small_cnn",
    "inception_v3": "inception",
    "resnet20": "resnet_cifar",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
