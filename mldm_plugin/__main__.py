"""`accelerate launch -m mldm_plugin SCRIPT …`: see mldm_plugin.attach."""

import sys

from mldm_plugin.attach.launcher import main

if __name__ == "__main__":
    sys.exit(main())
