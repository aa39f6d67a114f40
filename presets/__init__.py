"""One YAML file per run; read them with `mldm presets`."""
