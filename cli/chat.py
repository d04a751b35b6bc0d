"""`nanocode agent`: find the newest trained model in the store and start the chat with it."""

from pathlib import Path

from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.store import Store
from nanocode_core.store.tree import resolve


def chat(prompt: str | None, model: str, root: Path, yes_in_sandbox: bool, store: str | None) -> int:
    """Open the model's artifact and its tokenizer, then chat, or answer one prompt; the exit code."""
    if yes_in_sandbox and prompt is None:
        raise UserError("--yes-in-sandbox goes with --prompt: in a chat every call is asked for")
    if not root.is_dir():
        raise UserError(f"--root {root} is not a directory")
    shelf = Store.of(load_config("demo", [f"run.store={store}"] if store else []))
    if not shelf.records(model.partition("/")[0] if "/" in model or model in ("sft", "dpo") else None):
        raise UserError(f"no trained {model} model in {shelf.root}; train one with `make speedrun`")
    record = resolve(shelf, model)
    if "tokenizer" not in record.inputs or record.stage not in ("sft", "dpo"):
        raise UserError(f"--model {model}: a {record.stage} artifact is not an agent; name a sft or dpo artifact")
    trained = shelf.open(record.stage, record.fingerprint)
    tokenizer = shelf.open("tokenizer", record.inputs["tokenizer"].fingerprint)
    from nanocode_core.agent.ui import run_chat, run_once

    if prompt is not None:
        return run_once(prompt, trained.path, tokenizer.path, root.resolve(), yes_in_sandbox=yes_in_sandbox)
    return run_chat(trained.path, tokenizer.path, root.resolve())
