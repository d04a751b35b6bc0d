"""Trained models in the formats of other software: the `nanochat` format of transformers and vLLM."""
