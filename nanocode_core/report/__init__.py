"""The report: one HTML page and its Markdown twin, made from the records and files of a run."""
