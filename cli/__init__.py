"""The `nanocode` command: one file per group of commands, on top of everything else."""
