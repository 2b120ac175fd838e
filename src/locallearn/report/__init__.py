"""Reports. They read records only and never import torch."""
