"""`nanocode export`: a trained model of the store as a directory for transformers and vLLM."""

from pathlib import Path

from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.store import Store
from nanocode_core.store.tree import resolve

STAGES = ("pretrain", "sft", "dpo")


def export(model: str, out: Path, dtype: str, force: bool, store: str | None) -> None:
    """Find the model's artifact and its tokenizer, write the directory, print what to do with it."""
    shelf = Store.of(load_config("demo", [f"run.store={store}"] if store else []))
    if not shelf.published(model if model in STAGES else None):
        raise UserError(f"no trained {model} model in {shelf.root}; train one with `nanocode speedrun`")
    record = resolve(shelf, model)
    if record.stage not in STAGES or "tokenizer" not in record.inputs:
        raise UserError(f"--model {model}: a {record.stage} artifact is not a model; name one of {', '.join(STAGES)}")
    from nanocode_core.export.directory import check, export_directory
    from nanocode_core.model.weights import load_model

    check(out, dtype, force)  # before anything is downloaded or read
    trained = shelf.open(record.stage, record.fingerprint)
    tokenizer = shelf.open("tokenizer", record.inputs["tokenizer"].fingerprint)
    export_directory(load_model(trained.path), tokenizer.path, out, dtype, replace=force)
    print(f"wrote {record.stage}/{record.fingerprint} to {out}: {dtype}, for transformers and vLLM")
