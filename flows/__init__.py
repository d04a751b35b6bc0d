"""The flow: lists the stages in order and runs them, under Prefect or, without a server, plainly."""
