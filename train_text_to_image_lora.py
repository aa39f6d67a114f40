"""Train a LoRA: `accelerate launch train_text_to_image_lora.py --loss-plugin mldm --preset lora-sd15 …`."""

import sys

from mldm_plugin.training.text_to_image_lora import main

if __name__ == "__main__":
    sys.exit(main())
