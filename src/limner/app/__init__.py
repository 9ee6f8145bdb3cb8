"""The command line and what it needs: the only part of Limner that prints, prompts, downloads or picks a device."""
