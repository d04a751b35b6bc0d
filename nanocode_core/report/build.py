"""The stage `report`: all artifacts of a run -> report.html, report.md.

Made from records and files alone, without a look at the clock: the same inputs give the same page.
"""

from typing import TYPE_CHECKING, Any

from nanocode_core.report import evaluation, headline, sections, synthetic
from nanocode_core.report.facts import Facts, gather
from nanocode_core.report.page import Page
from nanocode_core.report.render import to_html, to_markdown

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job


def build(job: "Job") -> dict[str, Any]:
    """Write the report; returns the names of its files and the minutes of all stages together."""
    facts = gather(job.inputs)
    page = compose(facts)
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "report.html").write_text(to_html(page), encoding="utf-8")
    (job.out / "report.md").write_text(to_markdown(page), encoding="utf-8")
    return {
        "minutes": round(sections.total_minutes(facts), 3),
        "path_html": "report.html",
        "path_markdown": "report.md",
    }


def compose(facts: Facts) -> Page:
    """The page of these facts; whatever stages there are."""
    stages, stages_note = sections.stage_table(facts)
    return Page(
        title=headline.title(facts),
        subtitle=headline.subtitle(facts),
        tiles=headline.tiles(facts),
        stages=stages,
        stages_note=stages_note,
        evaluation=evaluation.evaluation_table(facts),
        families=evaluation.families_table(facts),
        talks=evaluation.talks(facts),
        charts=sections.charts(facts),
        training=evaluation.before_and_after(facts),
        samples=sections.samples(facts),
        teacher=synthetic.teacher(facts),
        synthetic=synthetic.synthetic_table(facts),
        synthetic_reasons=synthetic.reasons_table(facts),
        tokenizer=sections.tokenizer_table(facts),
        config=sections.config_table(facts),
        provenance=sections.provenance_table(facts),
        artifacts=sections.artifact_table(facts),
    )
