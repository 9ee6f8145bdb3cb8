"""Translators: lessons, data, figures, options."""
