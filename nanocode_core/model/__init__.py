"""The GPT: its function, files, losses and generation."""
