"""Inflight: serve large language models through the Triton Inference Server.

The package defines networks, writes plans and holds the tools that a person runs. It imports neither torch nor
transformers.
"""

__version__ = "0.1.0"
