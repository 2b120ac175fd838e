"""Where to cut, and what runs where: pure data, no tensors."""
