"""InceptionResnetV1 for faces (FaceNet), as a stack of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-3  # of the TensorFlow original (davidsandberg/facenet)


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Branches(nn.Module):
    """Branches side by side, their outputs concatenated; a branch is one module or a chain of them."""

    def __init__(self, *branches: list[nn.Module]) -> None:
        super().__init__()
        for number, chain in enumerate(branches):
            self.add_module(f"branch{number}", chain[0] if len(chain) == 1 else nn.Sequential(*chain))
        self.count = len(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count)], dim=1)


class _Residual(_Branches):
    """x + scale · (1×1 convolution of the branches), then ReLU unless it is the last block."""

    def __init__(self, channels: int, scale: float, *branches: list[nn.Module], relu: bool = True) -> None:
        super().__init__(*branches)
        inputs = sum(next(m for m in reversed(chain) if isinstance(m, _Conv)).conv.out_channels for chain in branches)
        self.conv2d = nn.Conv2d(inputs, channels, kernel_size=1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.conv2d(super().forward(x))
        return F.relu(x) if self.relu else x


def _block35() -> _Residual:
    return _Residual(
        256,
        0.17,
        [_Conv(256, 32, 1)],
        [_Conv(256, 32, 1), _Conv(32, 32, 3)],
        [_Conv(256, 32, 1), _Conv(32, 32, 3), _Conv(32, 32, 3)],
    )


def _block17() -> _Residual:
    return _Residual(
        896,
        0.10,
        [_Conv(896, 128, 1)],
        [_Conv(896, 128, 1), _Conv(128, 128, (1, 7)), _Conv(128, 128, (7, 1))],
    )


def _block8(scale: float = 0.20, relu: bool = True) -> _Residual:
    return _Residual(
        1792,
        scale,
        [_Conv(1792, 192, 1)],
        [_Conv(1792, 192, 1), _Conv(192, 192, (1, 3)), _Conv(192, 192, (3, 1))],
        relu=relu,
    )


def _half(inputs: int, outputs: int) -> _Conv:
    return _Conv(inputs, outputs, 3, stride=2, pad=False)


class InceptionResnetV1(nn.Module):
    """FaceNet's network, giving one stage of features for each halving of the resolution.

    Names of parameters are those of timesler/facenet-pytorch; its classifier `logits` is left out. The
    initial random weights keep the energy of their input in every convolution, so that all stages stay at
    the order of 1; PyTorch's own let the deep ones vanish.

    Source: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
    Learning", for the architecture; davidsandberg/facenet for its sizes. The initial weights are ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = _half(3, 32)
        self.conv2d_2a = _Conv(32, 32, 3, pad=False)
        self.conv2d_2b = _Conv(32, 64, 3)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = _Conv(64, 80, 1)
        self.conv2d_4a = _Conv(80, 192, 3, pad=False)
        self.conv2d_4b = _half(192, 256)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = _Branches(
            [_half(256, 384)],
            [_Conv(256, 192, 1), _Conv(192, 192, 3), _half(192, 256)],
            [nn.MaxPool2d(3, stride=2)],
        )
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = _Branches(
            [_Conv(896, 256, 1), _half(256, 384)],
            [_Conv(896, 256, 1), _half(256, 256)],
            [_Conv(896, 256, 1), _Conv(256, 256, 3), _half(256, 256)],
            [nn.MaxPool2d(3, stride=2)],
        )
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(scale=1.0, relu=False)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=NORM_EPS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, faces: Tensor) -> list[Tensor]:
        """Features of `faces`, (K, 3, 160, 160) RGB, (x - 127.5)/128 of 0–255.

        Returns:
            conv2d_2b, conv2d_4a, repeat_1, repeat_2, block8: (K, 64, 77, 77), (K, 192, 36, 36),
            (K, 256, 17, 17), (K, 896, 8, 8), (K, 1792, 3, 3).
        """
        half = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(faces)))
        quarter = self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(half)))
        eighth = self.repeat_1(self.conv2d_4b(quarter))
        sixteenth = self.repeat_2(self.mixed_6a(eighth))
        last = self.block8(self.repeat_3(self.mixed_7a(sixteenth)))
        return [half, quarter, eighth, sixteenth, last]

    def embed(self, faces: Tensor) -> Tensor:
        """The identity of `faces`: (K, 512) unit vectors, whose scalar product tells how alike two are."""
        pooled = self.forward(faces)[-1].mean(dim=(2, 3))
        return F.normalize(self.last_bn(self.last_linear(pooled)), dim=1)
