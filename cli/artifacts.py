"""`nanocode artifacts`: what the store holds, where it came from, whether it is whole, and clearing up.

A REF is a stage that has one artifact ("dpo"), its newest ("dpo/newest"), or the beginning of a
fingerprint, with or without the stage ("dpo/3f", "3f2a").
"""

import json
from typing import Annotated, Any

import typer

from nanocode_core.config import Config, load_config
from nanocode_core.errors import UserError
from nanocode_core.store import Record, Store, garbage, tree

app = typer.Typer(no_args_is_help=True, help="List, inspect, verify and remove artifacts.")

Reference = Annotated[str, typer.Argument(metavar="REF", help="Such as dpo, dpo/newest or dpo/3f2a.")]
StoreOption = Annotated[str | None, typer.Option(help="Artifact store: a directory or gs://bucket/prefix.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _store(root: str | None) -> Store:
    return Store.of(load_config("demo", [f"run.store={root}"] if root else []))


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True))


@app.command()
def ls(
    stage: Annotated[str | None, typer.Argument(help="Only this stage.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List artifacts, oldest first."""
    from cli import show as view

    where = _store(store)
    rows = tree.rows(where, stage)
    if as_json:
        _json([{**vars(row), "metrics": dict(row.metrics)} for row in rows])
    elif rows:
        view.emit(view.listing(rows))
    else:
        print(f"no {stage + ' ' if stage else ''}artifacts in {where.root}")


@app.command()
def show(
    reference: Reference,
    preset: Annotated[str | None, typer.Option("--preset", "-c", help="Why this preset would not reuse it.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Change one field of the preset; may be repeated."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a record and what it was made from; against a config, why it would not be reused."""
    from cli import show as view
    from cli.compare import compare
    from tasks import STAGES

    config: Config | None = load_config(preset or "demo", sets or ()) if preset or sets else None
    where = _store(store)
    record = tree.resolve(where, reference)
    reason = compare(record, STAGES, config, where) if config else None
    if as_json:
        against = {"against": view.difference_json(reason)} if config else {}
        _json({**record.model_dump(mode="json"), **against})
        return
    view.emit(view.record(record, tree.input_tree(where, record)))
    if config:
        view.emit(f"\nunder preset {config.preset}{' with ' + ', '.join(sets) if sets else ''}:")
        view.emit(view.difference(reason))


@app.command()
def verify(
    reference: Annotated[str | None, typer.Argument(metavar="[REF]", help="One artifact; else all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every artifact of the store (the default).")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file again and compare it with its record; exit code 1 where one is damaged."""
    from cli import show as view
    from nanocode_core.report.text import visible

    if reference and everything:
        raise UserError("give a REF or --all, not both")
    where = _store(store)
    keys = [tree.resolve_key(where, reference)] if reference else where.published()
    if not keys:
        raise UserError(f"no artifacts in {where.root}")
    damaged = 0
    results = []
    for stage, key in keys:
        problems = _problems(where, stage, key)
        damaged += bool(problems)
        results.append({"artifact": f"{stage}/{key}", "problems": problems})
        if not as_json:
            view.emit(f"{stage}/{key}  {'damaged' if problems else 'ok'}")
            for problem in problems:
                view.emit(f"  {visible(problem)}")
            if problems:
                view.emit(f"  repair: nanocode artifacts rm {stage}/{key}, then run again")
    if as_json:
        _json(results)
    if damaged:
        raise typer.Exit(1)


def _problems(store: Store, stage: str, key: str) -> list[str]:
    """What is wrong with an artifact, an unreadable record included."""
    try:
        record = store.record(stage, key)
        return store.verify(record) if record is not None else ["removed meanwhile"]
    except UserError as error:
        return [str(error)]


@app.command()
def rm(
    reference: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove an artifact. What was made from it stays, and is still reused where it is whole."""
    where = _store(store)
    stage, key = tree.resolve_key(where, reference)
    users = _users(where, stage, key)
    if users:
        print(f"{stage}/{key} went into {', '.join(users)}")
    if not yes and not typer.confirm(f"remove {stage}/{key}?"):
        raise typer.Exit(1)
    where.remove(stage, key)
    print(f"removed {stage}/{key}")


def _users(store: Store, stage: str, key: str) -> list[str]:
    """The artifacts that were made directly from this one; unreadable records are passed over."""
    records = (value for value in store.scan().values() if isinstance(value, Record))
    return [
        "/".join(r.key) for r in records if any((i.stage, i.fingerprint) == (stage, key) for i in r.inputs.values())
    ]


@app.command()
def gc(
    keep: Annotated[int, typer.Option(help="How many of the newest artifacts of each stage stay.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove what is neither among the newest of its stage nor needed by those, and abandoned work."""
    from cli import show as view

    where = _store(store)
    found = garbage.garbage(where, keep) if dry_run else garbage.sweep(where, keep)
    view.emit(view.garbage(found, done=not dry_run))
