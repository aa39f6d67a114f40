"""dlib's face recognition network: a ResNet of 29 layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mldm_plugin.perceptual.weights.dlib_dat import EMBEDDING, LEVELS


class DlibResNet(nn.Module):
    """ResNet of 29 convolutions as dlib has it, without its affine layers, which are folded into the convolutions.

    Args to the call:
        faces: (K, 3, 150, 150), what `dlib_input` gives; gradients flow.

    Returns:
        The five residual levels, (K, 32, 35, 35), (K, 64, 17, 17), (K, 128, 8, 8), (K, 256, 4, 4) and
        (K, 256, 2, 2), and the embedding (K, 128): two faces are one person's where their distance is below 0.6.

    Source: King, dlib_face_recognition_resnet_model_v1 (2017) and dnn_face_recognition_ex.cpp: a ResNet-34 with
    fewer layers and half as many channels, trained on about 3 million faces with a metric loss.
    """

    def __init__(self) -> None:
        super().__init__()
        before = LEVELS[0][0]
        convolutions = [nn.Conv2d(3, before, 7, stride=2)]
        for level, (channels, blocks) in enumerate(LEVELS):
            for block in range(blocks):
                halves = level > 0 and block == 0
                convolutions.append(
                    nn.Conv2d(before, channels, 3, stride=2 if halves else 1, padding=0 if halves else 1)
                )
                convolutions.append(nn.Conv2d(channels, channels, 3, padding=1))
                before = channels
        for i, convolution in enumerate(convolutions):  # random weights keep the magnitude of what they are given
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            if i > 0 and i % 2 == 0:
                convolution.weight.data *= 0.5  # the block's input is added to it
        self.convolutions = nn.ModuleList(convolutions)
        self.embedding = nn.Linear(before, EMBEDDING, bias=False)

    def forward(self, faces: Tensor) -> list[Tensor]:
        convolutions = iter(self.convolutions)
        x = F.max_pool2d(F.relu(next(convolutions)(faces)), 3, stride=2)
        levels = []
        for level, (_, blocks) in enumerate(LEVELS):
            for block in range(blocks):
                y = F.relu(next(convolutions)(x))
                y = next(convolutions)(y)
                x = F.relu(_add(_halved(x), y) if level > 0 and block == 0 else x + y)
            levels.append(x)
        return [*levels, self.embedding(x.mean(dim=(2, 3)))]


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _add(x: Tensor, y: Tensor) -> Tensor:
    """The sum as dlib has it: the smaller of the two is filled up with zeros in each direction."""
    height, width = max(x.shape[2], y.shape[2]), max(x.shape[3], y.shape[3])
    channels = max(x.shape[1], y.shape[1])
    both = [F.pad(t, (0, width - t.shape[3], 0, height - t.shape[2], 0, channels - t.shape[1])) for t in (x, y)]
    return both[0] + both[1]
