"""Small HyperInverters: lessons, options."""
