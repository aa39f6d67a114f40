"""The built-in metrics of `mldm evaluate`: one file each, loaded by name through pluggy."""
