"""The local step, the K x G network and the methods."""
