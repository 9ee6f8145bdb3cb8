"""Training: data, the loop's surroundings, and one module per kind of model.

The core (`data`, `run`, `gan`) needs only torch, numpy, Pillow and safetensors, so that the same command runs on a
borrowed machine without network.
"""
