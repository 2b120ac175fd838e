"""What each node computes and holds."""
