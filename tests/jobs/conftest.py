"""Fixtures of the tests of jobs."""

from gcs import gcs, gcs_address  # noqa: F401 (fixtures)
