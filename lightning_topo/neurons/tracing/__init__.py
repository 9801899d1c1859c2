"""Which units of which parameters belong together, by following axes through a recorded forward pass."""
