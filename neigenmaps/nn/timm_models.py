"""Our own networks under timm's names, for those who load an exported backbone by timm.

    import neigenmaps.nn.timm_models                                             # makes the names known
    backbone = timm.create_model("local-dir:exported/timm", pretrained=True)

Backbones that timm has as they are (`stem: default`) need no import.
"""

from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from neigenmaps.nn.encoders import DigitsCNN, build_backbone

__all__ = ["neigenmaps_cifar_stem", "neigenmaps_digits_cnn"]
FOREIGN = (
    "num_classes",
    "global_pool",
    "drop_rate",
    "drop_path_rate",
    "num_features",
)  # of classifiers; these have none


@register_model
def neigenmaps_digits_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`digits_cnn`."""
    return _built(lambda in_chans=1: DigitsCNN(in_chans), "neigenmaps_digits_cnn", pretrained, kwargs)


@register_model
def neigenmaps_cifar_stem(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A ResNet of timm with our stem for small images. network: its name there."""

    def make(network: str = "resnet18", in_chans: int = 3, **options: Any) -> nn.Module:
        return build_backbone(network, stem="cifar", in_chans=in_chans, options=options)

    return _built(make, "neigenmaps_cifar_stem", pretrained, kwargs)


def _built(make: Any, name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    built: nn.Module = build_model_with_cfg(make, name, pretrained, kwargs_filter=FOREIGN, **kwargs)  # type: ignore[arg-type]
    return built
