"""What a training step takes of a GPU's memory, computed without a GPU and without weights.

families.py        the shapes of the networks, from diffusers' configurations
meta.py            networks without data, that compute as under CUDA's autocast
step.py            the network's forward and backward pass, and the VAE's encoder
pixels.py          decoder and losses of one picture
budget.py          all of it in one peak, and what fits
tensor_memory.py   bytes counted as tensors come and go
"""
