"""Who a Google client is, in words: what a message about a missing permission has to name."""

from typing import Any

WORKLOAD_POOL = ".svc.id.goog"
"""A pod on GKE without a Google account of its own shows its cluster's workload pool as its e-mail."""


def name_of(credentials: Any) -> str:
    """The principal behind credentials of google.auth; None stands for none at all. Asks nobody over the network."""
    from google.auth.credentials import AnonymousCredentials

    if credentials is None or isinstance(credentials, AnonymousCredentials):
        return "an anonymous caller"
    email = getattr(credentials, "service_account_email", None)
    if email and email.endswith(WORKLOAD_POOL):
        return f"the pod's Kubernetes service account (Workload Identity of {email})"
    if email and email != "default":  # what a machine's account is called before it was first used
        return str(email)
    if email:
        return "this machine's service account"
    info = getattr(credentials, "info", None)
    if isinstance(info, dict) and info.get("audience"):
        return f"a federated identity of {str(info['audience']).removeprefix('//')}"
    account = getattr(credentials, "account", None)
    return str(account) if account else "the account of `gcloud auth application-default login`"
