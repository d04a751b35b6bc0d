"""What of k8s/ the tests install in the cluster."""

import yaml
from cluster import Cluster

from nanocode_core.config import PROJECT

NAMESPACE = "nanocode"


def install_accounts(cluster: Cluster) -> None:
    """The namespace with its service accounts and their rights; again: nothing changes."""
    documents = list(yaml.safe_load_all((PROJECT / "k8s" / "base" / "accounts.yaml").read_text()))
    for document in documents:
        document["metadata"]["namespace"] = NAMESPACE
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *documents])
