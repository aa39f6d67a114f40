"""Train on attributes and masks: `accelerate launch train_conditional_ldm.py --condition attributes …`."""

import sys

from mldm_plugin.training.asked import start
from mldm_plugin.training.conditional_flags import ConditionalFlags

if __name__ == "__main__":
    sys.exit(start(ConditionalFlags, "mldm_plugin.training.conditional_ldm"))
