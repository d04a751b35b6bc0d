"""From facts to a page: which figure stands where, for stages, training, data and provenance.

The evaluation has a file of its own. Every function takes whatever stages there are and leaves out
what has no figures.
"""

import datetime as dt
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from nanocode_core.config.chips import dollars, utilization
from nanocode_core.report import text
from nanocode_core.report.chart import Series, line_chart, smooth
from nanocode_core.report.facts import Facts, StageFacts, document, first_number, read_json
from nanocode_core.report.page import Chart, Sample, Table, table

HEADLINES = 3
"""Figures in the result column, at most."""


def stage_table(facts: Facts) -> tuple[Table, str]:
    """The stages with time, speed, cost and headline figure, and a note for what isn't shown."""
    rows = [
        (
            stage.name,
            text.minutes(stage.minutes),
            text.count(stage.record.provenance.get("starts")),
            text.count(stage.figure("tokens", "tokens_train", "train_tokens")),
            text.count(speed(stage)),
            text.percent(mfu(stage)),
            text.money(cost(stage)),
            headline(stage),
            stage.record.fingerprint,
        )
        for stage in facts.values()
    ]
    total = ("total", text.minutes(total_minutes(facts)), *[""] * 4, text.money(total_cost(facts)), "", "")
    heads = ("Stage", "Time#", "Starts#", "Tokens#", "Tokens/s#", "MFU#", "Cost#", "Result", "Fingerprint`")
    prices = {stage.chip[0].price for stage in facts.values() if stage.chip is not None}
    notes = [
        "Time is that of the work itself over all starts; a reused stage counts what it took when it was built.",
        *sorted(f"Cost: {p.source}, {p.date}, on demand." for p in prices if p is not None),
    ]
    return table(heads, [*rows, total]).without_empty_columns(), " ".join(notes)


def total_minutes(facts: Facts) -> float:
    """Minutes of all stages together."""
    return sum(stage.minutes or 0.0 for stage in facts.values())


def total_cost(facts: Facts) -> float | None:
    """Dollars of the stages whose price is known; None where there is none."""
    known = [amount for stage in facts.values() if (amount := cost(stage)) is not None]
    return sum(known) if known else None


def speed(stage: StageFacts) -> float | None:
    """Tokens per second: as recorded, or the median over the curve."""
    return stage.figure("tokens_per_second") or _median(stage, "tokens_per_second")


def mfu(stage: StageFacts) -> float | None:
    """Model FLOPs utilization, 0 to 1: as recorded, or from the speed and the chip's peak."""
    recorded = stage.figure("mfu") or _median(stage, "mfu")
    rate, work = speed(stage), stage.figure("flops_per_token")
    if recorded is not None or stage.chip is None or rate is None or work is None:
        return recorded
    chip, chips = stage.chip
    return utilization(rate * work, chip, chips)


def _median(stage: StageFacts, name: str) -> float | None:
    values = [value for _, value in stage.series(name)]
    return statistics.median(values) if values else None


def cost(stage: StageFacts) -> float | None:
    """Dollars at the on-demand price of its chips; as recorded, if it is."""
    recorded = first_number(stage.record.provenance, "cost", "dollars")
    if recorded is not None or stage.chip is None or stage.minutes is None:
        return recorded
    chip, chips = stage.chip
    return dollars(stage.minutes, chip, chips)


def headline(stage: StageFacts) -> str:
    """How a stage came out: the first of its metrics that have no column of their own, "before → after" in one."""
    own = ("tokens", "tokens_per_second", "mfu", "flops_per_token", "minutes", "loss", "steps", "goodput")
    shown = []
    for name, value in stage.metrics.items():
        if name in own or name.endswith("_before") or text.number(value) is None:
            continue
        before = stage.metrics.get(f"{name}_before")
        change = f"{text.metric(name, before)} → " if text.number(before) is not None else ""
        shown.append(f"{name.replace('_', ' ')} {change}{text.metric(name, value)}")
    return ", ".join(shown[:HEADLINES]) or text.DASH


def charts(facts: Facts) -> tuple[Chart, ...]:
    """Loss and bits per byte over the steps of every training stage."""
    out: list[Chart] = []
    for name, title in (("pretrain", "Pretraining"), ("sft", "Fine-tuning"), ("dpo", "Preferences")):
        if name not in facts:
            continue
        stage = facts[name]
        loss = stage.series("loss")
        lines = [Series("loss", loss, 0, faint=True), Series("loss", smooth(loss), 0)]
        out += _chart(f"{title}: loss", lines, "loss")
        out += _chart(f"{title}: bits per byte", _curves(stage, "bpb_", "rollout_bpb"), "bits per byte")
        margins = _curves(stage, "margin_positive", "pair_accuracy")
        out += _chart(f"{title}: pairs in the right order", margins, "share of pairs")
    return tuple(out)


def _curves(stage: StageFacts, *prefixes: str) -> list[Series]:
    """One series a metric whose name begins so."""
    names = stage.names(*prefixes)
    series = []
    for style, name in enumerate(names):
        points = stage.series(name)
        label = name.removeprefix("bpb_").replace("_", " ")
        series.append(Series(label, points, style, marks=len(points) <= 40))
    return series


def _chart(title: str, series: list[Series], y_label: str) -> list[Chart]:
    svg = line_chart(series, title, "step", y_label)
    if svg is None or max(len(s.points) for s in series) < 2:
        return []
    legend = tuple((s.name, s.style) for s in series if not s.faint and s.points)
    return [Chart(title, svg, legend)]


def samples(facts: Facts) -> tuple[Sample, ...]:
    """What the base model wrote after its prompts at the end of pretraining."""
    value = read_json(facts["pretrain"].path / "samples.json") if "pretrain" in facts else None
    if isinstance(value, Mapping):
        value = value.get("samples", [{"prompt": k, "text": v} for k, v in value.items()])
    found = []
    for entry in map(_mapping, _list(value)):
        said = next((entry[name] for name in ("text", "completion", "sample") if name in entry), None)
        if isinstance(said, str):
            found.append(Sample(str(entry.get("prompt", "")), said))
    return tuple(found)


def tokenizer_table(facts: Facts) -> Table:
    """Bytes per token: a row a text, a column a tokenizer."""
    comparison = document(facts, "tokenizer", "comparison.json")
    tokenizers = [t for t in _list(comparison.get("tokenizers")) if isinstance(t, Mapping)]
    ratios = [_mapping(t.get("bytes_per_token")) for t in tokenizers]
    heads = [f"{t.get('name', '?')} ({text.count(t.get('vocabulary'))})#" for t in tokenizers]
    texts = list(dict.fromkeys(name for ratio in ratios for name in ratio))
    rows = ((name, *(text.decimal(ratio.get(name), 2) for ratio in ratios)) for name in texts)
    return table(("Text", *heads), rows, "Bytes per token (vocabulary in brackets); more is better")


def config_table(facts: Facts) -> Table:
    """Every identity field of every stage, with the stages it decides."""
    fields: dict[tuple[str, str], list[str]] = {}
    for stage in facts.values():
        for key, value in stage.record.config.items():
            fields.setdefault((key, text.plain(value)), []).append(stage.name)
    return table(
        ("Field`", "Value`", "Decides"),
        ((key, value, ", ".join(stages)) for (key, value), stages in sorted(fields.items())),
    )


def artifact_table(facts: Facts) -> Table:
    """Fingerprint, content digest and size of every artifact."""
    return table(
        ("Stage", "Version#", "Fingerprint`", "Content sha256`", "Bytes#", "Finished"),
        (
            (
                stage.name,
                str(stage.record.version),
                stage.record.fingerprint,
                stage.record.digest,
                text.count(sum(file.size for file in stage.record.files.values())),
                text.moment(stage.record.provenance.get("finished")),
            )
            for stage in facts.values()
        ),
    )


def provenance_table(facts: Facts) -> Table:
    """Code, versions and machines; several values where the stages differ."""
    notes = [stage.record.provenance for stage in facts.values()]
    packages = [p.get("packages") for p in notes]
    named = sorted({name for p in packages if isinstance(p, Mapping) for name in p})
    rows = [
        ("SOUL.md, sha256", soul(facts)),
        ("commit", _distinct(p.get("commit") for p in notes)),
        ("nanocode", _distinct(p.get("nanocode") for p in notes)),
        ("machine", "; ".join(machines(facts)) or text.DASH),
        ("Python", _distinct(p.get("python") for p in notes)),
        *((name, _distinct(p.get(name) for p in packages if isinstance(p, Mapping))) for name in named),
    ]
    return table(("", "`"), rows)


def soul(facts: Facts) -> str:
    """The hash of SOUL.md, or a dash."""
    records = [stage.record.config for stage in facts.values()]
    found = [v for config in records for k, v in config.items() if k.startswith("soul") and isinstance(v, str)]
    return _distinct(found)


def machines(facts: Facts) -> list[str]:
    """The machines the stages ran on, in words, each once."""
    return list(dict.fromkeys(_machine(stage) for stage in facts.values() if stage.record.provenance.get("machine")))


def _machine(stage: StageFacts) -> str:
    machine = stage.record.provenance["machine"]
    if not isinstance(machine, Mapping):
        return str(machine)
    parts = [str(machine.get("processor") or machine.get("system") or "unknown processor")]
    if (cores := text.number(machine.get("cores"))) is not None:
        parts.append(f"{cores:.0f} cores")
    if (memory := text.number(machine.get("memory_gib"))) is not None:
        parts.append(f"{memory:.0f} GiB")
    if stage.chip is not None and stage.chip[0].peak_flops:
        parts.insert(0, f"{stage.chip[1]} x {stage.chip[0].name}")
    return ", ".join(parts)


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(v) for v in values if v)) or text.DASH


def finished(facts: Facts) -> dt.datetime | None:
    """When the last stage ended, UTC."""
    ends = [end for stage in facts.values() if (end := text.number(stage.record.provenance.get("finished")))]
    return dt.datetime.fromtimestamp(max(ends), dt.UTC) if ends else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
