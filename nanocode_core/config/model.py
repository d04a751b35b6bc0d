"""The whole configuration: one model, one dial (a preset), every field overridable.

A preset (`presets.py`) fills the fields, `--set section.field=value` or the deployment parameter
`overrides` changes single ones. The docstring under a field is its help text in the Prefect UI.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from nanocode_core.config.types import Execution, Identity, Section

PROJECT = Path(__file__).resolve().parents[2]

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Content = Literal["code", "prose"]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class PythonSource(Section):
    """The Python that is installed on this machine: no network, no account."""

    kind: Identity[Literal["python"]] = "python"
    name: Identity[SourceName]
    content: Identity[Content]
    """`code`: modules of the standard library and of the installed packages; `prose`: their
    docstrings, package descriptions and documentation."""


class HubSource(Section):
    """Parquet shards of a dataset on the Hugging Face hub (HF_ENDPOINT and HF_TOKEN are honoured)."""

    kind: Identity[Literal["hub"]] = "hub"
    name: Identity[SourceName]
    content: Identity[Content]
    repo: Identity[Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]]
    revision: Identity[str] = "main"
    pattern: Identity[str] = "*.parquet"
    """Shell pattern over the repository's file names, taken in sorted order."""
    shards: Identity[Positive] = 1
    """How many files to take; the last one is for validation (of a single one, every hundredth document)."""
    column: Identity[str] = "text"


class FilesSource(Section):
    """Your own parquet or JSON-lines files, local or gs://."""

    kind: Identity[Literal["files"]] = "files"
    name: Identity[SourceName]
    content: Identity[Content]
    paths: Identity[Annotated[tuple[str, ...], Field(min_length=1)]]
    """Globs, for example ["data/*.parquet", "gs://bucket/more/*.jsonl"]. Documents keep the order of
    their files: shuffle them where that order has a meaning. Every hundredth one is for validation."""
    column: Identity[str] = "text"


Source = Annotated[PythonSource | HubSource | FilesSource, Field(discriminator="kind")]


class Corpus(Section):
    """Which text the tokenizer and the model are trained on."""

    sources: Identity[tuple[Source, ...]] = (
        PythonSource(name="python-prose", content="prose"),
        PythonSource(name="python-code", content="code"),
    )
    code_share: Identity[Share] = 0.2
    """Share of code in the training characters."""
    characters: Identity[Positive | None] = None
    """Training characters to take at most; empty: all that the sources and the code share allow."""
    validation_characters: Identity[Positive] = 1_000_000
    """Characters of each source's own validation shard, at most."""
    shard_characters: Identity[Positive] = 50_000_000
    """Characters in one parquet shard."""
    workers: Execution[Count] = 0
    """Processes; 0: one a core."""

    @model_validator(mode="after")
    def _own_names(self) -> "Corpus":
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name!r}; give each a name of its own")
        return self


class Tokenizer(Section):
    """Byte-level BPE."""

    vocabulary: Identity[Annotated[int, Field(ge=300, le=262_144)]] = 32_768
    """Token ids, special tokens included."""
    train_characters: Identity[Positive] = 2_000_000_000
    """Characters of the corpus to train on, at most."""
    tool_format_share: Identity[Share] = 0.02
    """Share of the training text that is shown the way the Read tool shows a file, so that line
    prefixes become few tokens."""
    path: Identity[str | None] = None
    """A tokenizer.json to use instead of training one (its content counts, not its place)."""
    compare: Identity[tuple[str, ...]] = ()
    """Further tokenizer.json files to list in the table of bytes per token."""


class Model(Section):
    """A decoder-only transformer; the vocabulary comes from the tokenizer.

    The fields from `rope_theta` on are what the recipes differ in. "nanochat" in a docstring is
    Karpathy's torch trainer, where the feature was tuned at this scale.
    """

    depth: Identity[Positive] = 4
    width: Identity[Positive] = 256
    """d_model."""
    heads: Identity[Positive] = 4
    kv_heads: Identity[Positive | None] = None
    """Key/value heads (grouped-query attention, Ainslie et al. 2023); empty: as many as heads."""
    sequence: Identity[Positive] = 512
    """Training context, in tokens."""
    mlp_ratio: Identity[Positive] = 4
    softcap: Identity[Annotated[float, Field(ge=0)]] = 15.0
    """Logits are softcap * tanh(logits / softcap) (Gemma 2, 2024); 0: off."""
    compute: Identity[Literal["float32", "bfloat16"]] = "bfloat16"
    """Type of activations and matrix products; master weights are always float32."""
    rope_theta: Identity[Rate] = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021)."""
    qk_scale: Identity[Rate] = 1.0
    """Factor on queries and on keys after their norm: above 1 the attention can be sharper (nanochat: 1.2)."""
    window_pattern: Identity[Annotated[str, Field(pattern="^[SL]+$")]] = "L"
    """One letter a layer, repeated: S looks back over a quarter of the context (rounded up to 128),
    L over all of it; the last layer is always L (Beltagy et al. 2020; the pattern SSSL: nanochat)."""
    value_embeddings: Identity[bool] = False
    """Every second layer, the last one included, adds to its values an embedding of the token, with a
    gate a head that reads the layer's input (ResFormer, Zhou et al. 2024; the gates: nanochat)."""
    smear: Identity[bool] = False
    """Add the previous token's embedding to each token's, through a learned gate (modded-nanogpt, 2025)."""
    residual_scalars: Identity[bool] = False
    """Before each layer x <- a x + b x0, with learned a and b a layer and x0 the embedding (modded-nanogpt, 2024)."""
    backout: Identity[bool] = False
    """Subtract a learned share of the state after the middle layer before the head (modded-nanogpt, 2025)."""
    embedding_std: Identity[Rate] = 1.0
    """Standard deviation of the embedding at the start."""
    up_init: Identity[Rate] = 1.0
    """Factor on the MLP's first matrix at the start (nanochat: 0.4)."""
    remat: Execution[Literal["none", "products", "attention", "full"] | None] = None
    """What the backward pass computes again instead of keeping it: `products`: all but matrix products and
    attention; `attention`: all but attention; `full`: whole layers. Saves memory, costs time (Chen et al.
    2016); empty: `products` on a TPU, `none` elsewhere."""

    @model_validator(mode="after")
    def _divisible(self) -> "Model":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width ({self.width}) must be an even multiple of heads ({self.heads})")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.smear and self.width < 24:
            raise ValueError(f"width ({self.width}) must be at least 24 with smear")
        return self


class Optimizer(Section):
    """Muon for the matrices of the blocks, AdamW for embeddings, head and scalars."""

    matrix_lr: Identity[Rate] = 0.02
    embedding_lr: Identity[Rate] = 0.3
    """Value embeddings learn at half of it."""
    head_lr: Identity[Rate] = 0.004
    """This rate and embedding_lr are scaled by (width / 768) ** -0.5."""
    scalar_lr: Identity[Rate] = 0.5
    """Of the x0 scalars; the residual scalars learn at a hundredth of it."""
    lr_by_batch: Identity[bool] = False
    """Scale all rates by sqrt(tokens in a batch / 2**19) where that is above 1, and the weight decay to match
    (Malladi et al. 2022; Wang and Aitchison 2024; nanochat, which also lowers them)."""
    warmup: Identity[Share] = 0.0
    """Share of the steps with a linearly rising rate."""
    warmup_steps: Identity[Count] = 0
    """The same in steps; the longer of the two counts."""
    warmdown: Identity[Share] = 0.4
    """Share of the steps, the last ones, with a linearly falling rate."""
    final_lr: Identity[Share] = 0.0
    """Rate at the last step, as a share of the full one."""
    momentum: Identity[Share] = 0.95
    """Of Muon (Nesterov), rising from 0.85 over momentum_steps."""
    momentum_steps: Identity[Positive] = 300
    final_momentum: Identity[Share | None] = None
    """Momentum at the last step, reached linearly over the warmdown; empty: it stays (nanochat: 0.9)."""
    orthogonalizer: Identity[Literal["newton_schulz", "polar_express"]] = "newton_schulz"
    """How Muon orthogonalizes: the quintic of Jordan et al. 2024, or Polar Express (Amsel et al. 2025)."""
    equilibrate: Identity[bool] = False
    """Give the gradients of all output neurons the same norm before (MuonEq, 2026)."""
    renormalize: Identity[bool] = False
    """Give the result the Frobenius norm of an exactly orthogonal matrix (Muon+, 2026)."""
    second_moment: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Average over the steps of the squared update a neuron, by which the update is divided (NorMuon, Li et al.
    2025): the decay of the average; 0: off."""
    matrix_decay: Identity[Annotated[float, Field(ge=0)]] = 0.0
    """Weight decay of the matrices, only where it has the sign of the update (cautious, Chen et al. 2025),
    falling to zero along a cosine."""
    embedding_beta2: Identity[Share] = 0.95
    head_beta2: Identity[Share] = 0.95
    """AdamW's decay of the squared gradients; its decay of the gradients is 0.8."""
    embedding_decay: Identity[Annotated[float, Field(ge=0)]] = 0.0
    head_decay: Identity[Annotated[float, Field(ge=0)]] = 0.0
    """AdamW's weight decay; value embeddings have the head's."""


class Parallel(Section):
    """How a training step is spread over the devices: data x fsdp x tensor of them."""

    fsdp: Execution[Positive | None] = None
    """Devices that share one copy of parameters and optimizer state (ZeRO-3, Rajbhandari et al. 2020);
    empty: 1 where a device has room for a copy of its own, else all."""
    tensor: Execution[Positive] = 1
    """Devices that share each matrix product (Shoeybi et al. 2019)."""


class Checkpoints(Section):
    """When long work is saved; a killed run goes on from its last save."""

    minutes: Execution[Annotated[float, Field(gt=0)]] = 10.0
    steps: Execution[Positive | None] = None
    """Also save every so many steps."""
    keep: Execution[Positive] = 2


class Training(Section):
    """Pretraining."""

    tokens: Identity[Positive | None] = None
    """Tokens to train on; empty: tokens_per_parameter x parameters."""
    tokens_per_parameter: Identity[Rate] = 8.0
    parameters: Identity[Literal["all", "matrices_and_head"]] = "all"
    """Which parameters tokens_per_parameter counts (matrices and head alone: nanochat's scaling fits)."""
    steps: Identity[Positive | None] = None
    """Steps to train; overrides tokens."""
    batch_sequences: Identity[Positive | None] = None
    """Sequences in the global batch; empty: about 2**19 tokens at d12, growing with the power 0.383 of the
    tokens to train on (Bergsma et al. 2025), a power of two."""
    micro_sequences: Execution[Positive | None] = None
    """Sequences a device computes at once (gradient accumulation over the rest); empty: as suits the machine."""
    optimizer: Optimizer = Optimizer()
    validation_tokens: Identity[Positive] = 500_000
    """Validation tokens a source, at most."""
    validate_every: Execution[Positive] = 500
    sample_every: Execution[Positive] = 500
    profile: Execution[bool] = False
    """Trace a few steps of every training stage, for xprof or TensorBoard (logs/profile of its artifact)."""


class Synthetic(Section):
    """Constitutional data: a teacher writes tasks, plays the agent, critiques and revises."""

    teacher: Identity[str] = "scripted"
    """`scripted`: the embedded rule-based teacher (not an LLM); else a model name at base_url."""
    base_url: Execution[str | None] = None
    """OpenAI-compatible endpoint (vLLM, OpenRouter); the key comes from OPENAI_API_KEY or
    OPENROUTER_API_KEY."""
    rollouts: Identity[Positive] = 2_000
    """Accepted training rollouts to make."""
    held_out: Identity[Positive] = 120
    """Tasks kept for evaluation: never trained on."""
    max_revisions: Identity[Count] = 10
    accept_rating: Identity[Annotated[int, Field(ge=1, le=10)]] = 9
    """A critique below this rating sends the rollout back."""
    draft_temperature: Identity[Annotated[float, Field(ge=0, le=2)]] = 0.7
    critique_temperature: Identity[Annotated[float, Field(ge=0, le=2)]] = 0.2
    max_turns: Identity[Positive] = 8
    """Assistant turns in a rollout, at most."""
    concurrency: Execution[Positive] = 16
    """Requests to the teacher at a time."""
    patience_seconds: Execution[Count] = 1_800
    """How long to wait for a teacher that has answered and then goes away: a preempted spot machine comes
    back, with its model loaded, after minutes."""


class SFT(Section):
    """Supervised fine-tuning on the rollouts; loss on assistant tokens only."""

    epochs: Identity[Rate] = 1.0
    batch_sequences: Identity[Positive] = 32
    micro_sequences: Execution[Positive | None] = None
    optimizer: Optimizer = Optimizer()
    validate_every: Execution[Positive] = 200


class DPO(Section):
    """Direct preference optimization on chosen/rejected pairs."""

    loss: Identity[Literal["ipo", "sigmoid"]] = "ipo"
    beta: Identity[Rate] = 0.5
    epochs: Identity[Rate] = 1.0
    batch_pairs: Identity[Positive] = 16
    optimizer: Optimizer = Optimizer(matrix_lr=5e-5, embedding_lr=3e-3, head_lr=1e-4, warmdown=1.0)


class Eval(Section):
    """What is measured on the trained models."""

    tasks: Identity[Positive] = 120
    """Held-out tasks the agent plays, at most."""
    max_turns: Identity[Positive] = 8
    max_new_tokens: Identity[Positive] = 200
    """Tokens in one assistant turn, at most."""
    bash_seconds: Identity[Rate] = 10.0
    """Time limit of one command in the sandbox."""
    batch: Identity[Positive] = 16
    """Tasks played side by side (part of the identity: it can move the last bits of the logits)."""


class GKE(Section):
    """Jobs on Kubernetes (run.launcher=gke)."""

    accelerator: Execution[str] = Field(default_factory=lambda: os.environ.get("NANOCODE_ACCELERATOR") or "v6e-8")
    """What the training stages and the evaluation run on: a slice such as v6e-8, a GPU node such as h100-8, or cpu."""
    hosts: Execution[Positive] = 1
    """Hosts of a job on `cpu`; a slice has as many as it has."""
    spot: Execution[bool] = Field(default_factory=lambda: cast(Any, os.environ.get("NANOCODE_SPOT") or True))
    """Run on preemptible machines."""
    images: Execution[str] = Field(default_factory=lambda: os.environ.get("NANOCODE_IMAGES", ""))
    """Where the images lie: REGION-docker.pkg.dev/PROJECT/nanocode."""
    tag: Execution[str] = Field(default_factory=lambda: os.environ.get("NANOCODE_TAG", "latest"))
    """Of the images."""
    namespace: Execution[str] = "nanocode"
    service_account: Execution[str] = "nanocode-trainer"
    """Whom the jobs run as: it may read and write the buckets, and nothing in the cluster."""
    secret: Execution[str] = "nanocode-secrets"
    """Secret whose keys the jobs that need them see as variables (HF_TOKEN, OPENROUTER_API_KEY); it may be absent."""
    cpus: Execution[Positive] = 14
    """Cores of a job on `cpu`."""
    memory_gib: Execution[Positive] = 48
    """Memory of a host of a job on `cpu`."""
    disk_gib: Execution[Positive] = 80
    """Local disk of a host, for the cache."""
    queue: Execution[str | None] = None
    """Kueue's LocalQueue that admits the jobs; empty: none."""
    priority: Execution[str | None] = None
    """PriorityClass of the pods; in a queue, Kueue's WorkloadPriorityClass of the job."""
    environment: Execution[dict[str, str]] = Field(default_factory=dict)
    """Further variables of the jobs."""
    crashes: Execution[Positive] = 3
    """A job that crashed so often without a new save in between is stopped."""


class Run(Section):
    """Where and how a run happens; nothing here changes a result."""

    store: Execution[str] = Field(default_factory=lambda: os.environ.get("NANOCODE_STORE") or str(PROJECT / "store"))
    """Artifact store: a directory or gs://bucket/prefix."""
    work: Execution[str | None] = Field(default_factory=lambda: os.environ.get("NANOCODE_WORK") or None)
    """Where a store on gs:// keeps checkpoints and copies of work in progress, gs://other-bucket/prefix: they come
    and go, so a bucket that keeps what was deleted is no place for them; empty: in the store."""
    launcher: Execution[Literal["local", "gke"]] = Field(
        default_factory=lambda: cast(Any, os.environ.get("NANOCODE_LAUNCHER") or "local")
    )
    """Where jobs run: as processes of this machine, or on Kubernetes."""
    lease_seconds: Execution[Annotated[float, Field(ge=2)]] = 60.0
    """A lease that was not renewed for so long may be taken over."""
    mirror_seconds: Execution[Annotated[float, Field(gt=0)]] = 30.0
    """How often a remote store's copy of the work in progress is brought up to date."""
    cache: Execution[str] = Field(
        default_factory=lambda: os.environ.get("NANOCODE_CACHE") or str(Path.home() / ".cache" / "nanocode")
    )
    """Local directory for downloads and compiled programs."""
    cache_gib: Execution[Annotated[float, Field(gt=0)] | None] = None
    """What the artifacts downloaded from a store on gs:// may take there: those used last stay; empty: half of the
    free space of the disk."""


class Config(Section):
    """Everything a run needs. The identity fields decide the artifacts, the others how they are made."""

    preset: Execution[str] = "demo"
    recipe: Execution[Literal["nanocode", "modern"]] = "nanocode"
    """Where the values came from; the values themselves are what counts."""
    seed: Identity[Count] = 0
    soul: Execution[str] = str(PROJECT / "SOUL.md")
    """The constitution (its content counts, not its place)."""
    corpus: Corpus = Corpus()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    training: Training = Training()
    parallel: Parallel = Parallel()
    synthetic: Synthetic = Synthetic()
    sft: SFT = SFT()
    dpo: DPO = DPO()
    eval: Eval = Eval()
    checkpoints: Checkpoints = Checkpoints()
    run: Run = Field(default_factory=Run)
    gke: GKE = Field(default_factory=GKE)

    def pick(self, *paths: str) -> dict[str, Any]:
        """Identity values at dotted paths, flat: pick("model", "seed") -> {"model.depth": 4, ...}."""
        flat: dict[str, Any] = {}
        _flatten("", self.identity(), flat)
        wanted = {k: v for k, v in flat.items() if any(k == p or k.startswith(p + ".") for p in paths)}
        for path in paths:
            if not any(k == path or k.startswith(path + ".") for k in wanted):
                raise KeyError(f"no identity field at {path!r}")
        return wanted


def _flatten(prefix: str, value: Any, out: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}" if prefix else key, inner, out)
    else:
        out[prefix] = value
