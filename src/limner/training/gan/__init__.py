"""Generators: networks of a run, games of generator and discriminator, figures, a run in small files."""
