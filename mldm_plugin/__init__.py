"""Masked LDM losses for existing diffusion trainers."""
