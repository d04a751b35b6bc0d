"""Constitutional synthetic data: a teacher writes tasks, plays the agent, critiques and revises.

`build.build` makes the artifact of the stage `synthetic`. The conversations are real: every tool call
is executed in a scratch directory, and only those are kept whose task check passes at the end.
"""
