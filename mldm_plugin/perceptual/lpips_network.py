"""The networks that LPIPS looks with: five stages of features, and the learned weight of each channel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import lpips
from torch import Tensor, nn

from mldm_plugin.perceptual.frozen import Frozen, build_seeded, build_to_fill
from mldm_plugin.perceptual.unit_difference import unit_normalise
from mldm_plugin.perceptual.weights import described, fill, load_state_dict

TRUNKS = {"vgg": "vgg16", "alex": "alexnet"}  # lpips' name → that of the weights


def weight_files(options: Mapping[str, Any]) -> list[str]:
    """The weights that a loss with these options `network` and `weights` asks for."""
    return [TRUNKS[options["network"]]] if options["weights"] == "pretrained" else []


class LPIPSNetwork:
    """The network of `lpips.LPIPS(net=name)`, frozen.

    Args:
        name: `vgg` or `alex`, the trunk.
        weights: `pretrained` takes the trunk from the weights cache; `random` is seeded. The learned channel
            weights come with the lpips package in either case.

    `networks` names the trunk, where its weights came from and their terms of use.

    Attributes:
        scaling, trunk: what its pictures go through, in float32.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
    """

    def __init__(
        self, name: Literal["vgg", "alex"] = "vgg", weights: Literal["pretrained", "random"] = "pretrained"
    ) -> None:
        model = lpips_model(name)
        if weights == "pretrained":
            trunk = TRUNKS[name]
            fill(model.net, _in_slices(load_state_dict(trunk), model.net), trunk)
        self.networks = (described(TRUNKS[name]),) if weights == "pretrained" else ()
        self.scaling, self.trunk = model.scaling_layer, model.net
        self._features = Frozen(nn.Sequential(self.scaling, self.trunk))
        self._channel_weights = [layer.model[-1].weight.detach().clone() for layer in model.lins]

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of `images` (n, 3, H, W) in [-1, 1]: five tensors (n, C_l, h_l, w_l)."""
        return list(self._features(images))

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Unit-normalised features of `images` (n, 3, H, W) in [-1, 1]: five tensors (n, C_l, h_l, w_l)."""
        return [unit_normalise(f) for f in self._features(images)]

    def channel_weights(self, like: Tensor) -> list[Tensor]:
        """The learned weights, five tensors (1, C_l, 1, 1), ≥ 0, on the device and in the dtype of `like`."""
        if self._channel_weights[0].device != like.device or self._channel_weights[0].dtype != like.dtype:
            self._channel_weights = [w.to(like) for w in self._channel_weights]
        return self._channel_weights


def lpips_model(name: str, *, spatial: bool = False) -> Any:
    """`lpips.LPIPS(net=name)` with its learned channel weights and a random trunk, seeded: He et al.'s, as torchvision
    draws VGG's. The classifier that torchvision's networks come with is never drawn: it has nine tenths of the weights,
    and lpips drops it."""

    def build() -> lpips.LPIPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips 0.1.4 calls torchvision's deprecated `pretrained=`
            return lpips.LPIPS(net=name, pnet_rand=True, spatial=spatial, verbose=False)

    model: Any = build_to_fill(build)
    build_seeded(lambda: _draw(model.net))
    return model


def _draw(trunk: nn.Module) -> nn.Module:
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return trunk


def _in_slices(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """torchvision's names (features.7.weight) as lpips has them (slice2.7.weight)."""
    slices = {"features." + name.split(".", 1)[1]: name for name in net.state_dict()}
    return {slices.get(name, name): value for name, value in state.items()}
