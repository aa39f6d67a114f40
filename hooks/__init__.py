"""The built-in losses and weightings: one file each, loaded by name through pluggy."""
