"""DualStyleGANs: stages, what they learn from and measure."""
