"""See what training does to the neurons of a network, and find the learning rate at which it destroys them."""

__version__ = "0.1.0"
