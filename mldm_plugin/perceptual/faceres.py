"""HSE's face network as `human` has it: a MobileNet of 27 convolutions. It judges, and no loss uses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

# Channels and stride of each block: a convolution of 3×3 for each channel alone, then one of 1×1.
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


class FaceRes(nn.Module):
    """MobileNet-v1, its batch norms folded into the convolutions, up to the mean over the picture.

    Args to the call:
        faces: (K, 3, 224, 224), what `faceres_input` gives; gradients flow.

    Returns:
        One element, the embedding (K, 1024), each number in [0, 6]. Two of them are compared by their angle.

    Source: Savchenko, "Efficient facial representations for age, gender and identity recognition in organizing photo
    albums using multi-output ConvNet" (2019) and HSE_FaceRec_tf; trained to name the people of VGGFace2. Its heads for
    age and gender are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        before = 32
        convolutions = [nn.Conv2d(3, before, 3, stride=2)]
        for channels, stride in BLOCKS:
            convolutions.append(nn.Conv2d(before, before, 3, stride=stride, groups=before))
            convolutions.append(nn.Conv2d(before, channels, 1))
            before = channels
        for convolution in convolutions:  # random weights keep the magnitude of what they are given
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, faces: Tensor) -> list[Tensor]:
        x = faces
        for convolution in cast("Iterable[nn.Conv2d]", self.convolutions):
            x = F.relu6(convolution(_padded(x, convolution.kernel_size[0], convolution.stride[0])))
        return [x.mean(dim=(2, 3))]


def _padded(x: Tensor, side: int, stride: int) -> Tensor:
    """Zeros around `x` as TensorFlow's SAME wants them: ⌈length/stride⌉ come out, an odd zero lies right and below."""
    edges: list[int] = []
    for length in (x.shape[3], x.shape[2]):
        zeros = max((-(-length // stride) - 1) * stride + side - length, 0)
        edges += [zeros // 2, zeros - zeros // 2]
    return F.pad(x, edges) if any(edges) else x
