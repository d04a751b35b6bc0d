"""Evaluation: bits per byte, pair accuracy, held-out agentic tasks, the soul in what was said."""
