"""The metrics that `mldm evaluate` comes with, one file each."""
