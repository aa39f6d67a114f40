"""Train a ControlNet: `accelerate launch train_controlnet.py --loss-plugin mldm --preset controlnet …`."""

import sys

from mldm_plugin.training.asked import start
from mldm_plugin.training.flags import ControlNetFlags

if __name__ == "__main__":
    sys.exit(start(ControlNetFlags, "mldm_plugin.training.controlnet"))
