"""The built-in condition encoders, one file each."""
