"""The ResNet-50 of VGGFace2, as a stack of features."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

# Of a pixel against its channel's mean, in grey levels of 255; chosen: photographs lie between 50 and 70.
PIXEL_DEVIATION = 60.0


class VGGFace2ResNet50(ResNet):
    """ResNet-50 with Caffe's conventions, giving the five stages that the face loss compares.

    Two things differ from torchvision's: a stage halves its resolution in its first 1×1 convolution, not in
    the 3×3 one, and the max pooling has no padding but rounds its output size up. Names of parameters are
    torchvision's, which are also those of the `resnet50_ft` file; the classifier `fc` is left out.

    The initial random weights keep every stage at the order of 1 (conv1: a quarter of the pixels' deviation)
    with batch norms that have seen no data: conv1 has torchvision's weights and a running variance set for
    pixels, the other convolutions keep the energy of their input, and each of the 16 blocks adds a
    sixteenth to the energy of the stream. torchvision's own would leave layer4 at 2·10³.

    Source: He et al., "Deep Residual Learning for Image Recognition"; Cao et al., "VGGFace2: A dataset for
    recognising faces across pose and age". The initial weights are ours.
    """

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=1)
        del self.fc, self.avgpool
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
        for layer in (self.layer2, self.layer3, self.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.conv1:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.weight, 32**-0.5)
        # torchvision draws conv1 with variance 2/(64·49) for its 3·49 inputs.
        nn.init.constant_(self.bn1.running_var, 2 * 3 / 64 * PIXEL_DEVIATION**2)

    def forward(self, faces: Tensor) -> list[Tensor]:
        """Features of `faces`, (K, 3, 224, 224) BGR of 0–255 minus the mean.

        Returns:
            conv1 before its batch norm (K, 64, 112, 112), as the released Masked LDM code takes it, then
            layer1 to layer4: (K, 256, 56, 56), (K, 512, 28, 28), (K, 1024, 14, 14), (K, 2048, 7, 7).
        """
        stages = [self.conv1(faces)]
        x = self.maxpool(self.relu(self.bn1(stages[0])))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages
