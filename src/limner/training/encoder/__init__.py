"""Compact encoders: lessons, figures, options."""
