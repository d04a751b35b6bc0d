"""Jobs: a stage's spec, the worker process that builds it, and the launchers that start that."""
