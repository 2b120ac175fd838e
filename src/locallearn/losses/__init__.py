"""Loss functions, and the local objectives made of them."""
