"""CPU seconds and memory of one DMD2 cycle: 1 student turn and 4 critic turns, everything its training loop does included.

    python benchmarks/step_cost.py                                                    # ours alone
    python benchmarks/step_cost.py --peer path/to/FastGen --peer-python venv/bin/python   # and FastGen's, in turn
    python benchmarks/step_cost.py ... --no-gan            # without the adversarial part
    python benchmarks/step_cost.py ... --dtype bf16        # autocast on both sides

Both sides train the same SD3 transformer with random weights (10.9M parameters, 16 x 32 x 32 latents, 77 text tokens): batch 2,
guidance 4, full copies in every role, a discriminator head of 0.52M parameters on block 3 of the teacher, AdamW, one thread. Each
side is a process of its own that is alive throughout; they take turns, one cycle at a time.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

Cycle = Callable[[], None]
SIDES = {"ours": "step_cost_ours", "peer": "step_cost_fastgen"}
DIFFERENCES = """
What each side does (the student's network calls, the noise levels, the head's size and the optimiser's settings are the same):
  ours  The training loop is the product's: drawing the batch, both losses, clipping every player, the finite check, the optimiser
        and the logged sums. The critic turn that follows a student turn learns on that turn's samples instead of drawing its own.
        Teacher with guidance: one call on the doubled batch. GAN: of samples, the features of the fake score's own pass, without
        a gradient into it; of real latents, a pass up to the tapped block (--features teacher: as the peer, but up to that block).
        The head has the same number of parameters, most of them behind its average over the tokens.
  peer  Its model's training step, backward, gradient clipping callback (NaN scan, student only), optimisers and schedulers, as its
        trainer calls them; a fixed batch; the callbacks that need a GPU or a network (statistics, wandb) are left out. Every critic
        turn makes its own samples. Guidance: two calls. GAN: features from the teacher's whole call, which keeps its graph.
  Averages of the student are off on both sides (the peer's default for DMD2).
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of FastGen")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that can import it")
    parser.add_argument("--rounds", type=int, default=5, help="cycles of each side")
    parser.add_argument("--no-gan", dest="gan", action="store_false")
    parser.add_argument("--num-steps", type=int, default=1, help="network calls of the student per sample")
    parser.add_argument(
        "--roles", choices=["full", "shared"], default="full", help="ours: copies, or LoRA on one backbone"
    )
    parser.add_argument(
        "--features", choices=["fake_score", "teacher"], default="fake_score",
        help="ours: network whose features the heads judge; the teacher's, as the peer has them, need a call of their own",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, default=64, help="ours: of the adapters")
    parser.add_argument("--head-width", type=int, default=606, help="ours: 606 has the peer's number of parameters")
    parser.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def status_mib(field: str) -> float:
    """A memory field of this process, in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def work(options: argparse.Namespace) -> None:
    """Build one side, then run a cycle for every line that comes in and answer with its CPU seconds and the peak memory."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    sys.path.insert(0, str(Path(__file__).parent))
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cycle: Cycle = importlib.import_module(SIDES[options.worker]).build(options)
    gc.collect()
    built = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    print(json.dumps({"built_mib": built}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        cycle()
        seconds = time.process_time() - start
        print(json.dumps({"cpu_s": seconds, "peak_mib": status_mib("VmHWM")}), file=answers, flush=True)


class Worker:
    """One side in its own process."""

    def __init__(self, side: str, python: str, environment: dict[str, str]) -> None:
        self.side = side
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it outlives this call
        self.process = subprocess.Popen(
            [python, __file__, "--worker", side, *sys.argv[1:]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self.built = self.answer()["built_mib"]
        self.ask()  # warm-up
        self.cpu_s: list[float] = []

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"{self.side} failed:\n{self.log.read()[-3000:]}")
        return json.loads(line)

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("cycle\n")
        self.process.stdin.flush()
        return self.answer()

    def cycle(self) -> None:
        reply = self.ask()
        self.cpu_s.append(reply["cpu_s"])
        self.above_built = reply["peak_mib"] - self.built

    def summary(self) -> dict[str, Any]:
        return {
            "cpu_s": [round(s, 3) for s in self.cpu_s],
            "cpu_s_median": round(median(self.cpu_s), 3),
            "cpu_s_min": round(min(self.cpu_s), 3),
            "built_mib": round(self.built),
            "above_built_mib": round(self.above_built),
        }


def main() -> None:
    options = arguments()
    if options.worker:
        work(options)
        return
    workers = [Worker("ours", sys.executable, {})]
    if options.peer:
        workers.append(Worker("peer", options.peer_python, {"PYTHONPATH": str(options.peer.resolve())}))
    for _ in range(options.rounds):
        for worker in workers:
            worker.cycle()
    result: dict[str, Any] = {worker.side: worker.summary() for worker in workers}
    for side, row in result.items():
        print(
            f"{side}: CPU s per cycle median {row['cpu_s_median']:.2f} min {row['cpu_s_min']:.2f}, memory above the built "
            f"networks {row['above_built_mib']} MiB (built: {row['built_mib']} MiB with the interpreter)"
        )
    if options.peer:
        figures = ("cpu_s_median", "cpu_s_min", "above_built_mib")
        result["ratio"] = {name: round(result["ours"][name] / result["peer"][name], 3) for name in figures}
        print(
            "ratio ours / peer: CPU median {cpu_s_median:.2f} min {cpu_s_min:.2f}, memory {above_built_mib:.2f}".format(
                **result["ratio"]
            )
        )
        print(DIFFERENCES)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
