"""From photographs of a person to a LoRA that is judged: `mldm start` writes run.yaml, `mldm train` carries it out."""
