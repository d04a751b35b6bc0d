import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.jobs.job import Job
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.build import build
from nanocode_core.tokenizer.bytelevel import alphabet
from nanocode_core.tokenizer.documents import Document
from nanocode_core.tokenizer.identity import tokenizer_identity
from nanocode_core.tokenizer.listing import numbered, training_texts


def job(corpus: Path, place: Path, **settings: Any) -> Job:
    config = load_config("smoke", overrides={"tokenizer": {"vocabulary": 700, **settings}})
    (place / "out").mkdir(parents=True, exist_ok=True)
    inputs: Any = {"corpus": SimpleNamespace(path=corpus)}
    store: Any = None
    return Job("tokenizer", "0" * 16, config, inputs, place, place / "out", store)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


def test_the_artifact(corpus: Path, tmp_path: Path):
    metrics = build(job(corpus, tmp_path))
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert sorted(digests(tmp_path / "out")) == ["comparison.json", "token_bytes.npy", "tokenizer.json"]
    assert metrics["vocabulary"] == tokenizer.vocabulary == 700
    saved = np.load(tmp_path / "out" / "token_bytes.npy")
    assert saved.dtype == np.int32
    assert (saved == tokenizer.token_bytes).all()
    table = json.loads((tmp_path / "out" / "comparison.json").read_text())
    ours, prose = table["tokenizers"]
    assert prose["name"] == "trained without code"
    assert set(ours["bytes_per_token"]) == set(table["bytes"]) >= {"code sample", "py validation", "docs validation"}
    assert ours["bytes_per_token"]["code sample"] > prose["bytes_per_token"]["code sample"] > 1
    assert metrics["bytes_per_token py validation"] == ours["bytes_per_token"]["py validation"]


def test_the_same_corpus_gives_the_same_bytes_whatever_the_threads(corpus: Path, tmp_path: Path):
    build(job(corpus, tmp_path / "here"))
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_tokenizer_build import build, job; build(job(Path(sys.argv[2]), Path(sys.argv[3])))"
    )
    for threads in ("1", "3"):
        place = tmp_path / threads
        subprocess.run(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(corpus), str(place)],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        assert digests(place / "out") == digests(tmp_path / "here" / "out")


def test_a_second_start_goes_on_from_the_saved_tokenizer(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build(job(corpus, tmp_path))
    whole = digests(tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    (tmp_path / "without_code.json").unlink()
    (tmp_path / "without_code.json.partial").write_text('{"charac')  # killed while it was written
    trained = []
    from nanocode_core.tokenizer import build as module

    monkeypatch.setattr(
        module, "train", lambda texts, size, real=module.train: trained.append(size) or real(texts, size)
    )
    build(job(corpus, tmp_path))
    assert trained == [700]
    assert digests(tmp_path / "out") == whole


def test_a_corpus_too_small_gives_the_tokens_it_has(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]):
    metrics = build(job(corpus, tmp_path, vocabulary=2_000, train_characters=300, tool_format_share=0))
    assert 11 + 256 < metrics["vocabulary"] < 2_000
    assert "2,000 wanted" in capsys.readouterr().out


def test_listings_make_tool_results_shorter(corpus: Path, tmp_path: Path):
    sizes = [
        build(job(corpus, tmp_path / str(share), tool_format_share=share))["bytes_per_token tool result sample"]
        for share in (0.0, 0.5)
    ]
    assert sizes[1] > sizes[0]


def test_training_texts_keep_to_the_share_and_the_number_of_characters():
    code = [Document(f"x = {n}\ny = 2\n" * 20, "py", "code") for n in range(100)]
    prose = [Document("word " * 50, "docs", "prose")] * 100
    mixed = [document for pair in zip(code, prose, strict=True) for document in pair]
    out = list(training_texts(mixed, 20_000, 0.25, "code"))
    plain = {document.text for document in mixed}
    listings = [text for text in out if text.startswith("    1→x = ")]
    assert sum(len(text) for text in out if text in plain) < 20_000
    listed = sum(len(document.text) for document in code if numbered(document.text) in listings)
    assert 0.2 < listed / 20_000 <= 0.25
    assert list(training_texts(mixed, 10, 0.0, "code")) == [code[0].text[:10]]


def test_numbered_lines():
    assert numbered("a\n\nb", first=99) == "   99→a\n  100→\n  101→b"


def byte_level(**options: Any) -> Backend:
    """A GPT-2 style tokenizer of 258 ids, with special tokens and a normalizer of its own."""
    vocabulary = {character: id_ for id_, character in enumerate(alphabet())}
    backend = Backend(models.BPE(vocab={**vocabulary, "in": 256}, merges=[("i", "n")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.get("prefix", False))
    backend.decoder = decoders.ByteLevel()
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken("<|end|>", lstrip=True)])
    return backend


def test_a_tokenizer_of_ones_own(corpus: Path, tmp_path: Path):
    theirs = tmp_path / "mine" / "tokenizer.json"
    theirs.parent.mkdir()
    byte_level().save(str(theirs))
    metrics = build(job(corpus, tmp_path / "work", path=str(theirs), compare=[str(theirs)]))
    tokenizer = Tokenizer.load(tmp_path / "work" / "out")
    assert metrics["vocabulary"] == tokenizer.vocabulary == 258 + 11
    assert tokenizer.bos == 258
    text = "e\u0301 begin <|end|>  <|bos|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.encode("in") == [256]
    table = json.loads((tmp_path / "work" / "out" / "comparison.json").read_text())
    assert [row["name"] for row in table["tokenizers"]] == ["this tokenizer", "mine"]
    assert table["tokenizers"][0]["bytes_per_token"] == table["tokenizers"][1]["bytes_per_token"]


def test_special_tokens_that_are_there_keep_their_ids(corpus: Path, tmp_path: Path):
    backend = byte_level()
    backend.add_tokens([AddedToken("<|user_start|>", normalized=False)])
    backend.save(str(tmp_path / "own.json"))
    build(job(corpus, tmp_path, path=str(tmp_path / "own.json")))
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.user_start == 258
    assert tokenizer.vocabulary == 259 + 10
    assert tokenizer.user_start not in tokenizer.encode("<|user_start|>")


@pytest.mark.parametrize("kind", ["text", "words", "prefix"])
@pytest.mark.parametrize("field", ["path", "compare"])
def test_a_file_that_will_not_do_is_named(corpus: Path, tmp_path: Path, kind: str, field: str):
    file = tmp_path / "bad.json"
    if kind == "text":
        file.write_text("to be or not to be")
    elif kind == "words":
        Backend(models.WordLevel({"hello": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(file))
    else:
        byte_level(prefix=True).save(str(file))
    if field == "compare" and kind != "text":  # to compare, any tokenizer will do
        build(job(corpus, tmp_path, compare=[str(file)], train_characters=50_000))
        table = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert table["tokenizers"][-1]["name"] == "bad"
        return
    with pytest.raises(UserError, match=r"bad\.json"):
        build(job(corpus, tmp_path, **{field: str(file) if field == "path" else [str(file)]}))


def test_identity_is_the_content_of_the_files(tmp_path: Path):
    def identity(**settings: Any) -> dict[str, Any]:
        return tokenizer_identity(load_config("smoke", overrides={"tokenizer": settings}))

    for place in ("a", "b", "c"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "own.json").write_text("different" if place == "c" else "same")
    a, b, c = (str(tmp_path / place / "own.json") for place in "abc")
    assert identity() != identity(path=a) == identity(path=b) != identity(path=c)
    assert identity(compare=[a]) == identity(compare=[b]) != identity(compare=[c])
    assert json.loads(json.dumps(identity(path=a, compare=[a]))) == identity(path=a, compare=[a])
    with pytest.raises(UserError, match=r"tokenizer\.path: .*missing\.json"):
        identity(path=str(tmp_path / "missing.json"))
    with pytest.raises(UserError, match=r"tokenizer\.compare\[1\]"):
        identity(compare=[a, str(tmp_path)])
