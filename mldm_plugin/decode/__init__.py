"""Latents to pictures, with gradient, at the price that was asked for.

decoder.py          what the engine asks of a decoder
latent_decoder.py   the VAE itself, in the trainer's scale and shift
still.py            single pictures through the autoencoder of a video model
own.py              a function of the host's in the VAE's place
tiny.py             TAESD in its place
stages.py           what the network makes on the way, for losses on its features
checkpointed.py     activations computed again instead of kept
"""
