"""Networks in pure PyTorch.  This package imports torch and `limner.errors` only."""
