"""The exchange test, and what it needs: an example input, and a copy of the model to try it on."""
