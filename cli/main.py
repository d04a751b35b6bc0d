"""`nanocode`: train an agent, talk to it, look at what was made.

Bad input ends every command with one line on stderr and exit code 2. Commands import what they need
when they run, so that `nanocode --help` is quick and `nanocode artifacts` never loads jax.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import artifacts
from nanocode_core.errors import StorageError, UserError

app = typer.Typer(
    name="nanocode",
    help="Train a coding agent of your own, end to end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(artifacts.app, name="artifacts")

PresetOption = Annotated[str, typer.Option("--preset", "-c", help="demo, smoke, d3, d6, d12, d20 or d24.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Change one field; may be repeated.")
]
StoreOption = Annotated[str | None, typer.Option(help="Artifact store: a directory or gs://bucket/prefix.")]


def _run(preset: str, sets: list[str] | None, store: str | None, stages: list[str] | None) -> None:
    from flows.speedrun import speedrun

    settings = list(sets or [])
    if store:
        settings.append(f"run.store={store}")
    raise typer.Exit(speedrun(preset=preset, sets=settings, stages=stages))


@app.command()
def speedrun(
    preset: PresetOption = "demo",
    sets: SetOption = None,
    stages: Annotated[
        str | None, typer.Option(help="Only these stages, comma-separated; their inputs must be there.")
    ] = None,
    store: StoreOption = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps of every training stage, for xprof or TensorBoard.")
    ] = False,
) -> None:
    """Run the whole pipeline: whatever is already in the store is reused."""
    settings = [*(sets or []), *(["training.profile=true"] if profile else [])]
    _run(preset, settings, store, [name.strip() for name in stages.split(",") if name.strip()] if stages else None)


@app.command()
def synth(preset: PresetOption = "demo", sets: SetOption = None, store: StoreOption = None) -> None:
    """Make the synthetic data only."""
    _run(preset, sets, store, ["synthetic"])


@app.command(name="eval")
def evaluate(preset: PresetOption = "demo", sets: SetOption = None, store: StoreOption = None) -> None:
    """Evaluate the trained models; prints the figures, from the store if they are there."""
    _run(preset, sets, store, ["eval"])


@app.command()
def report(preset: PresetOption = "demo", sets: SetOption = None, store: StoreOption = None) -> None:
    """Write the report of a finished run and print where it is."""
    _run(preset, sets, store, ["report"])


@app.command()
def agent(
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="One request instead of a chat.")] = None,
    model: Annotated[str, typer.Option(help="Artifact to talk to: dpo, sft, or one of their fingerprints.")] = "dpo",
    root: Annotated[Path, typer.Option(help="Project directory; the tools stay inside it.")] = Path(),
    yes_in_sandbox: Annotated[
        bool, typer.Option("--yes-in-sandbox", help="Run calls in the sandbox without asking (with --prompt).")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Talk to the agent that was trained last."""
    from cli.chat import chat

    raise typer.Exit(chat(prompt=prompt, model=model, root=root, yes_in_sandbox=yes_in_sandbox, store=store))


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Directory to write; absent or empty.")],
    model: Annotated[str, typer.Option(help="Artifact: pretrain, sft, dpo, or one of their fingerprints.")] = "dpo",
    dtype: Annotated[str, typer.Option(help="float32 (exact) or bfloat16 (half the size).")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    store: StoreOption = None,
) -> None:
    """Write a trained model as a Hugging Face directory, for transformers and vLLM."""
    from cli.export import export as write

    write(model=model, out=out, dtype=dtype, force=force, store=store)


@app.command()
def plan(
    preset: Annotated[
        str | None, typer.Option("--preset", "-c", help="demo ... d24 (default: d24); with --sweep several, by commas.")
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option("--accelerator", "-a", help="v6e-8, v5e-16, v5p-8, h100-8, cpu ... (default: v6e-8)."),
    ] = None,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a page.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="A table over presets and accelerators.")] = False,
    mfu: Annotated[float | None, typer.Option(help="Share of the chips' peak to reckon with, 0 to 1.")] = None,
    compile_tpu: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile for TPUs; default: yes, but not for a sweep."),
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML file of prices of your own.")] = None,
) -> None:
    """Show what a pretraining needs and costs on an accelerator: does it fit, how long, how many dollars."""
    from cli.plan import plan as show

    show(preset, accelerator, list(sets or []), as_json, sweep, mfu, compile_tpu, prices)


@app.command()
def up() -> None:
    """Start a Prefect server, a work pool and a worker on this machine, and deploy the flows."""
    from cli.services import up as start

    start()


@app.command()
def deploy(
    pool: Annotated[
        str, typer.Option(help="local: runs are processes of this machine; gke: runs are Jobs of the cluster.")
    ] = "local",
) -> None:
    """Bring a Prefect server up to date: the work pool, the deployments of prefect.yaml, the automations."""
    from cli.deploy import deploy as make

    make(pool)


@app.command(hidden=True)
def sweep(namespace: Annotated[str, typer.Option(help="Of the jobs.")] = "nanocode") -> None:
    """End what cancelled runs have left in the cluster, for ever (beside the worker of the pool gke)."""
    from cli.sweep import sweep as go_on

    go_on(namespace)


@app.command()
def down() -> None:
    """Stop what `nanocode up` started."""
    from cli.services import down as stop

    stop()


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except (UserError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
