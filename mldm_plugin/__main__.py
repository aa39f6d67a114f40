"""`accelerate launch -m mldm_plugin SCRIPT …`: see mldm_plugin.attach."""

import sys

from mldm_plugin.threads import wait_asleep

if __name__ == "__main__":
    wait_asleep()
    from mldm_plugin.attach.launcher import main

    sys.exit(main())
