"""Whether a training did anything: what it did to the weights, what its losses saw, what its pictures and masks are."""
