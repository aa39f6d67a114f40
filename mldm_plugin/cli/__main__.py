"""`python -m mldm_plugin.cli` is `mldm`, for environments whose scripts are not on the path."""

from mldm_plugin.cli import main

main(prog_name="mldm")
