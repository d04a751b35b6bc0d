"""Times the train step of a nanochat checkout: a child process of train_cpu.py and train_gpu.py.

Runs under the peer's own Python, which needs torch and the packages that its modules import, with
the peer's model, initialisation, optimizer and one `torch.compile` call, as its trainer does it:
forward, backward, optimizer step, gradients freed. The tokens are random; the schedules of the
trainer only change numbers that go into the optimizer and are left out. The parent sets
NANOCHAT_DTYPE. Prints a line of JSON a step, {"step": seconds, "processor": [user, system seconds]},
and a summary last.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="the peer's checkout")
    parser.add_argument("--shape", type=json.loads, required=True, help="JSON: layers, heads, width, sequence ...")
    parser.add_argument("--rows", type=int, required=True, help="sequences computed at once")
    parser.add_argument("--accumulate", type=int, default=1, help="passes of that many rows in one step")
    parser.add_argument("--window-pattern", default="L", help="the peer's windows by layer: L full, S a quarter")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=3, help="timed steps after the first two")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.peer))
    import torch
    from nanochat.common import COMPUTE_DTYPE, compute_init
    from nanochat.flash_attention import USE_FA3
    from nanochat.gpt import GPT, GPTConfig

    *_, device = compute_init(arguments.device)
    wanted = arguments.shape
    config = GPTConfig(
        sequence_len=wanted["sequence"],
        vocab_size=wanted["vocabulary"],
        n_layer=wanted["layers"],
        n_head=wanted["heads"],
        n_kv_head=wanted["heads"],
        n_embd=wanted["width"],
        window_pattern=arguments.window_pattern,
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    compiled = torch.compile(model, dynamic=False)
    optimizer = model.setup_optimizer(weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(wanted["vocabulary"], (arguments.rows, wanted["sequence"] + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device)
    synchronize = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None

    def step() -> float:
        for _ in range(arguments.accumulate):
            loss = compiled(inputs, targets)
            value = loss.detach()
            (loss / arguments.accumulate).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(value.item())

    times, processor, losses = [], [], []
    for _ in range(2 + arguments.steps):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        losses.append(step())
        synchronize()
        times.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        processor.append((after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
        print(json.dumps({"step": times[-1], "processor": processor[-1]}), flush=True)
    print(
        json.dumps(
            {
                "losses": losses,
                "tokens_per_step": inputs.numel() * arguments.accumulate,
                "parameters": model.num_scaling_params()["total"],
                "flops_per_token": model.estimate_flops(),
                "attention": "flash attention 3" if USE_FA3 else "scaled_dot_product_attention",
                "dtype": str(COMPUTE_DTYPE).removeprefix("torch."),
                "version": f"torch {torch.__version__}",
                "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
                "peak_device_gb": torch.cuda.max_memory_allocated() / 1e9 if arguments.device == "cuda" else None,
            }
        )
    )


if __name__ == "__main__":
    main()
