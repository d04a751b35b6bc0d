"""The nanocode library: everything that trains, runs and measures the agent.

It knows neither Prefect nor Kubernetes, and importing it imports no jax. Inside it the imports run
one way: jobs -> (report, evals, constitution, agent) -> training -> (model, data) -> tokenizer ->
corpus -> store -> config.
"""

__version__ = "0.1.0"
