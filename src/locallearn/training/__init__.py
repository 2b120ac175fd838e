"""Training: optimizers, evaluation, checkpoints, records and the loop."""
