"""Train a ControlNet: `accelerate launch train_controlnet.py --loss-plugin mldm --preset controlnet …`."""

import sys

from mldm_plugin.training.controlnet import main

if __name__ == "__main__":
    sys.exit(main())
