import os
import tempfile

# Before anything imports Prefect: its home must be neither the user's nor the project's.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="nanocode-prefect-")
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ.pop("PREFECT_API_URL", None)
