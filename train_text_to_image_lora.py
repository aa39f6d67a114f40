"""Train a LoRA: `accelerate launch train_text_to_image_lora.py --loss-plugin mldm --preset lora-sd15 …`."""

import sys

from mldm_plugin.training.asked import start
from mldm_plugin.training.flags import LoraFlags

if __name__ == "__main__":
    sys.exit(start(LoraFlags, "mldm_plugin.training.text_to_image_lora"))
