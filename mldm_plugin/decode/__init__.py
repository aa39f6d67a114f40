"""Latents to pictures, with gradient, at the price that was asked for.

decoder.py          what the engine asks of a decoder
latent_decoder.py   the VAE itself, in the trainer's scale and shift
tiny.py             TAESD in its place
checkpointed.py     activations computed again instead of kept
"""
