"""The artifact store: files on a local directory or gs://, records, leases, and what looks after them."""

from nanocode_core.store.files import Files
from nanocode_core.store.leases import Lease
from nanocode_core.store.records import FileEntry, InputRef, Record, fingerprint
from nanocode_core.store.store import Artifact, Store

__all__ = ["Artifact", "FileEntry", "Files", "InputRef", "Lease", "Record", "Store", "fingerprint"]
