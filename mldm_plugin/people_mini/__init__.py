"""people-mini: a small Stable Diffusion of people, and the program that trains it."""
