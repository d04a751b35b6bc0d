"""Training: one loop, three objectives, and the stages pretrain, sft and dpo."""
