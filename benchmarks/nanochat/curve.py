"""A nanochat run on our corpus and tokenizer: a child process of learning_curve.py, under the peer's Python.

    prepare   our shards and tokenizer in the layout of the peer's base directory; long documents in pieces,
              of which the peer would only read the beginning
    train     the peer's own `scripts.base_train`, untouched, with a seed of ours
    score     its final weights on given windows, in float32: nats and bytes

NANOCHAT_BASE_DIR names the base directory. The peer has no seed argument: training draws its
initial weights from one, and `prepare` the order of the pieces, which the peer reads one after
the other. Its trainer imports wandb also where no run is logged; an empty module will do then.
The last line of stdout is JSON.
"""

import argparse
import importlib.util
import json
import os
import pickle
import random
import runpy
import sys
import time
import types
from pathlib import Path

ROW_GROUP = 1_000
PIECE = 511
"""Tokens of a piece of a document, at most: with its <|bos|> it fills a row of 513, or nearly."""
DATA = "base_data_climbmix"
"""The folder in which the peer looks for shards."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="the peer's checkout")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("--corpus", type=Path, required=True, help="folder of our corpus artifact")
    command.add_argument("--tokenizer", type=Path, required=True, help="folder of our tokenizer artifact")
    command.add_argument("--sample", type=Path, required=True, help="JSON: texts and the ids they should have")
    command = commands.add_parser("train")
    command.add_argument("arguments", nargs="*", help="for base_train, behind --")
    command = commands.add_parser("score")
    command.add_argument("--windows", type=Path, required=True, help="npz: int32 [N, T + 1] for each source")
    arguments = parser.parse_args()
    base = Path(os.environ["NANOCHAT_BASE_DIR"])
    sys.path.insert(0, str(arguments.peer))
    if arguments.command == "prepare":
        result = prepare(arguments.corpus, arguments.tokenizer, arguments.sample, base, arguments.seed)
    elif arguments.command == "train":
        result = train(arguments.arguments, arguments.seed)
    else:
        result = score(arguments.windows)
    print(json.dumps(result), flush=True)


def prepare(corpus: Path, tokenizer: Path, sample: Path, base: Path, seed: int) -> dict[str, object]:
    """Write shards and tokenizer; the last shard in order of names is the peer's validation data."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    encoding, lengths = tiktoken_encoding(tokenizer / "tokenizer.json")

    def texts(split: str) -> list[str]:
        shards = sorted((corpus / split).glob("*.parquet"))
        return [text for shard in shards for text in pq.read_table(shard, columns=["text"])["text"].to_pylist()]

    documents = texts("train")
    pieces = [piece for text in documents for piece in cut(text, encoding, PIECE)]
    random.Random(seed).shuffle(pieces)
    (base / DATA).mkdir(parents=True, exist_ok=True)
    for number, content in enumerate((pieces, texts("validation"))):
        path = base / DATA / f"shard_{number:05d}.parquet"
        pq.write_table(pa.table({"text": content}), path, row_group_size=ROW_GROUP)
    (base / "tokenizer").mkdir(exist_ok=True)
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    torch.save(torch.tensor(lengths, dtype=torch.int32), base / "tokenizer" / "token_bytes.pt")
    pairs = json.loads(sample.read_text())
    different = sum(encoding.encode_ordinary(text) != ids for text, ids in pairs)
    return {"pieces": len(pieces), "sample_documents": len(pairs), "sample_documents_that_differ": different}


def cut(text: str, encoding: "object", most: int) -> list[str]:
    """A document in pieces of at most `most` tokens; a piece ends with a whole character."""
    ids, pieces, start = encoding.encode_ordinary(text), [], 0
    while start < len(ids):
        end = min(len(ids), start + most)
        while True:
            try:
                pieces.append(encoding.decode_bytes(ids[start:end]).decode())
                break
            except UnicodeDecodeError:
                end -= 1
        start = end
    return pieces


def tiktoken_encoding(path: Path) -> tuple["object", list[int]]:
    """The tiktoken encoding of a byte-level BPE tokenizer.json, and the bytes of each id (0: special).

    The ids of such a tokenizer rise with the order of its merges, so they serve as tiktoken's ranks.
    """
    import tiktoken

    fields = json.loads(path.read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in fields["added_tokens"] if token["special"]}
    alphabet = byte_alphabet()
    ranks = {
        bytes(alphabet[character] for character in spelled): id_
        for spelled, id_ in fields["model"]["vocab"].items()
        if spelled not in special
    }
    split = next(part for part in fields["pre_tokenizer"]["pretokenizers"] if part["type"] == "Split")
    encoding = tiktoken.Encoding(
        name="nanocode", pat_str=split["pattern"]["Regex"], mergeable_ranks=ranks, special_tokens=special
    )
    lengths = [0] * encoding.n_vocab
    for raw, id_ in ranks.items():
        lengths[id_] = len(raw)
    return encoding, lengths


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, others for 256 and up."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


def train(arguments: list[str], seed: int) -> dict[str, object]:
    """Run the peer's base_train as its command line would; only the seed of the initial weights is ours."""
    import torch
    from nanochat import common

    if importlib.util.find_spec("wandb") is None:
        sys.modules["wandb"] = types.ModuleType("wandb")
    start, original = time.perf_counter(), common.compute_init

    def compute_init(*args: object, **named: object) -> object:
        result = original(*args, **named)
        torch.manual_seed(seed)
        return result

    common.compute_init = compute_init
    sys.argv = ["base_train", *arguments]
    runpy.run_module("scripts.base_train", run_name="__main__", alter_sys=True)
    return {"seconds": time.perf_counter() - start}


def score(windows: Path) -> dict[str, object]:
    """Nats of all targets with bytes, and their bytes, by source: of the newest checkpoint."""
    import numpy as np
    import torch
    from nanochat.checkpoint_manager import load_model
    from nanochat.tokenizer import get_token_bytes

    model, _, meta = load_model("base", torch.device("cpu"), phase="eval")
    sizes, measured = get_token_bytes(), {}
    with np.load(windows) as sources, torch.inference_mode():
        for name in sources.files:
            nats, length = 0.0, 0
            for rows in torch.from_numpy(sources[name].astype(np.int64)).split(8):
                targets = rows[:, 1:].contiguous()
                losses = model(rows[:, :-1].contiguous(), targets, loss_reduction="none").view(targets.shape)
                size = sizes[targets]
                nats += float((losses.double() * (size > 0)).sum())
                length += int(size.sum())
            measured[name] = {"nats": nats, "bytes": length}
    return {"sources": measured, "steps": meta["step"], "tokens": meta["step"] * meta["total_batch_size"]}


if __name__ == "__main__":
    main()
