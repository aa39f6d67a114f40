"""Faces from attributes and semantic masks: the networks around `train_conditional_ldm.py`, and its judges.

"Conditioning Diffusion Models via Attributes and Semantic Masks for Face Generation".
"""
