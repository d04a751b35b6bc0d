"""Token rows for training: packed corpus rows, packed conversations, preference pairs.

Every reader gives `batch(step)` as a pure function of (seed, step): a resumed run sees what an
undisturbed one sees, and needs no state but the step.
"""
