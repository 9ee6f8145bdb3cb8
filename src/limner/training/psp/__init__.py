"""Training of the published encoders: pSp, e4e, ReStyle on either."""
