"""Latents to pictures, with gradient, at the price that was asked for.

pixel_path.py       what a step's losses compare: which decoder, which precision, how many pictures at a time
latent_decoder.py   the trainer's latents, scale and shift undone, through its VAE
checkpointed.py     the decoder's activations computed again instead of kept
region.py           only windows of a picture
looked_at.py        where losses look, and so where windows are
tiny.py             TAESD in the VAE's place
pixel_memory.py     what a picture takes, and how many that lets through
"""
