"""How nodes are executed."""
