"""The page of a run: complete, self-contained, the same each time, and safe whatever a model wrote."""

import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_run import FAMILIES, INPUTS, build_run
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode_core.jobs.job import Job
from nanocode_core.report.build import build, compose
from nanocode_core.report.facts import gather
from nanocode_core.report.page import Talk
from nanocode_core.report.render import to_html, to_markdown
from nanocode_core.report.transcript import turns_of


class Outline(html.parser.HTMLParser):
    """The tags, attributes and text of a page, and whether its tags are balanced."""

    VOID = ("meta", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    job = build_run(tmp_path_factory.mktemp("run"))
    return build(job), job.out


@pytest.fixture(scope="module")
def scratch_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run whose files a test may change."""
    return build_run(tmp_path_factory.mktemp("scratch"))


def test_the_page_tells_the_run(run) -> None:
    metrics, out = run
    assert metrics["minutes"] == pytest.approx(13.35)
    page = Outline((out / metrics["path_html"]).read_text("utf-8"))
    text = " ".join(page.text)
    for expected in (
        "A coding agent with 3.34M parameters",
        "13.3 min",
        "74.2%",
        "73.0% (88/120)",
        "96.9%",
        "Some Processor 9000, 2 cores, 8 GiB",
        "not lowercase",
        "not a language model",
        "trained without code (4,096)",
        "5c" * 32,
        "0123456789ab",
        *(family.replace("_", " ") for family in FAMILIES),
        *INPUTS,
    ):
        assert expected in text
    assert page.tags.count("svg") > 5
    assert {"solved", "failed"} <= {part.strip() for part in page.text}


def test_the_page_needs_nothing_from_outside(run) -> None:
    _, out = run
    page = Outline((out / "report.html").read_text("utf-8"))
    assert not {"script", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href") and value != "data:,"]
    style = re.search(r"<style>(.*?)</style>", (out / "report.html").read_text("utf-8"), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_markdown_tells_the_same(run) -> None:
    _, out = run
    text = (out / "report.md").read_text("utf-8")
    assert "| tasks solved | – | 73.0% (88/120) | 74.2% (89/120) |" in text
    assert "-    return sum(items) - 1\n+    return sum(items) + 1" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_same_inputs_give_the_same_bytes(run, tmp_path: Path) -> None:
    _, out = run
    again = build_run(tmp_path)
    build(again)
    for name in ("report.html", "report.md"):
        assert (again.out / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    "only", [(), ("pretrain",), ("eval",), ("synthetic", "dpo"), ("corpus", "tokenizer", "tokens")]
)
def test_missing_stages_are_left_out(only: tuple[str, ...], scratch_job: Job) -> None:
    page = compose(gather({name: scratch_job.inputs[name] for name in only}))
    Outline(to_html(page))
    assert to_markdown(page)
    assert len(page.stages.rows) == len(only) + 1


@pytest.mark.parametrize(
    "content", ["", "null", "[1, 2]", '{"sft": [{}]}', '{"sft": {"tasks": null}}', "{", "\x00\xff"]
)
def test_odd_documents_show_as_dashes(content: str, scratch_job: Job) -> None:
    job = scratch_job
    for artifact in job.inputs.values():
        for path in artifact.path.rglob("*.json*"):
            if path.name != "artifact.json":
                path.write_text(content, encoding="latin-1")
    build(job)
    page = (job.out / "report.html").read_text("utf-8")
    Outline(page)
    assert "13.3 min" in page  # from the records, which are whole
    assert "<h2>Conversations" not in page


def test_cost_and_utilization_on_a_known_chip(tmp_path: Path) -> None:
    job = build_run(tmp_path, machine={"processor": "Host", "accelerator": "TPU v6 lite", "chips": 8})
    build(job)
    text = (job.out / "report.html").read_text("utf-8")
    assert "8 x v6e" in text
    assert "$4.81" in text  # 13.35 min x 8 chips x $2.70
    assert "Google Cloud" in text


NASTY = (
    "</pre></details><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\x00\x1b[31mred\x1b[0m \x9b1m \x7f \u202egnp.exe \ud83d",
    "{{ 7 * 7 }} {% raw %} &lt; &amp;",
    "``` \n~~~\n# not a heading\n| a | b |",
    "'\"><b onmouseover=x>",
)


@pytest.mark.parametrize("wild", NASTY)
def test_wild_text_is_shown_and_nothing_more(wild: str, run, tmp_path: Path) -> None:
    _, out = run
    job = build_run(tmp_path, wild=wild.replace("\ud83d", ""))
    build(job)
    page = (job.out / "report.html").read_text("utf-8")
    plain = Outline((out / "report.html").read_text("utf-8"))
    seen = Outline(page)
    assert set(seen.tags) == set(plain.tags)
    assert {name for name, _ in seen.attributes} == {name for name, _ in plain.attributes}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)


wild_text = st.text(st.characters(), max_size=40) | st.sampled_from(NASTY)
wild_turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "text": wild_text},
        optional={
            "call": st.fixed_dictionaries(
                {
                    "name": wild_text | st.sampled_from(["Bash", "Edit", "Read"]),
                    "arguments": st.dictionaries(
                        wild_text | st.sampled_from(["command", "file_path", "old_string", "new_string"]), wild_text
                    ),
                }
            )
        },
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(wild_turns, wild_text, wild_text)
def test_no_conversation_can_bring_markup(turns, title: str, note: str) -> None:
    base = compose({})
    talk = Talk(title, False, note, turns_of(turns, {"0": note}))
    page = replace(base, title=title, talks=(talk,))
    shown = to_html(page)
    shown.encode("utf-8")
    to_markdown(page).encode("utf-8")
    allowed = {"section", "h2", "p", "details", "summary", "span", "div", "pre", "i"} | set(Outline(to_html(base)).tags)
    outline = Outline(shown)
    assert set(outline.tags) <= allowed
    assert {name for name, _ in outline.attributes} <= {
        *(name for name, _ in Outline(to_html(base)).attributes), "id", "class", "dir", "open", "tabindex", "scope"
    }  # fmt: skip
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_long_results_are_folded() -> None:
    long = {"role": "tool", "text": "\n".join(map(str, range(200)))}
    page = replace(compose({}), talks=(Talk("t", True, "", turns_of([long])),))
    assert "<summary>200 lines</summary>" in to_html(page)


def test_metrics_are_json(run) -> None:
    metrics, _ = run
    assert json.loads(json.dumps(metrics)) == metrics
