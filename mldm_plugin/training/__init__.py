from mldm_plugin.threads import wait_asleep

wait_asleep()  # here, because every trainer's module loads torch, and it is too late after that
