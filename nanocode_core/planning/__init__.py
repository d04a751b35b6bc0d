"""Planning: what a training run needs and costs on an accelerator that need not be here."""
