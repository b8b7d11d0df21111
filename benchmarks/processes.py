"""Samples in one process and in two, of one thread each: how much sooner, and are they the same to the last bit?

    python benchmarks/processes.py            # writes benchmarks/results/processes.json
    python benchmarks/processes.py --quick    # fewer samples, one round, nothing written

The U-Net of the digits draws images by the default sampler to a folder, `distributed.sample_to`. One process and two
take turns, each started anew. Of each round is told the time on the clock, from when all are ready to when the last is
done, and the time that the busiest process spent on its processor: what a quiet machine of as many cores would take,
which depends less on what else runs here. The least of the rounds is reported: other programs only take away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed as group

from sde_diffusion import VPSDE, Network, SDESampler, predict
from sde_diffusion.nets import UNet
from sde_diffusion.sampler.distributed import sample_to

RESULTS = Path(__file__).parent / "results" / "processes.json"
BATCH = 64


def sampler() -> SDESampler:
    """The default sampler of the U-Net of the digits; untrained, which takes as long."""
    torch.manual_seed(0)
    net = UNet(1, width=32)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return SDESampler(VPSDE(), Network(net, VPSDE(), predict.edm, shape=(1, 8, 8)))


def work(out: Path, n: int, meet: str) -> None:
    """What one of the processes does; prints its times and the digest of all samples."""
    torch.set_num_threads(1)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if count > 1:
        group.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=count)
    draws = sampler()
    draws.sample(BATCH, seed=0)  # warms up
    if count > 1:
        group.barrier()
    clock, used = time.perf_counter(), time.process_time()
    samples = sample_to(draws, n, out, batch_size=BATCH)
    took = {"clock": time.perf_counter() - clock, "processor": time.process_time() - used}
    print(json.dumps({**took, "digest": hashlib.sha256(samples.tensor().numpy().tobytes()).hexdigest()}))


def measure(count: int, n: int) -> dict[str, float | str]:
    """The times of the slowest of so many processes, and the digest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", f"{folder}/out", "--n", str(n), "--meet", f"{folder}/meet"]
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        started = [
            subprocess.Popen(
                command,
                env={**os.environ, **single, "RANK": str(rank), "WORLD_SIZE": str(count)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    assert len({one["digest"] for one in told}) == 1
    return {**{key: max(one[key] for one in told) for key in ("clock", "processor")}, "digest": told[0]["digest"]}


def main(n: int, rounds: int) -> dict[str, object]:
    """Measures, prints and returns the table."""
    found: dict[int, list[dict[str, float | str]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, times in found.items():
            times.append(measure(count, n))
    same = len({str(one["digest"]) for times in found.values() for one in times}) == 1
    assert same, "the samples differ"
    about: dict[str, object] = {"n": n, "batch_size": BATCH, "rounds": rounds, "torch": torch.__version__}
    about |= {"cores": os.cpu_count(), "machine": platform.machine(), "same_samples": same}
    for key in ("clock", "processor"):
        one, two = (min(float(t[key]) for t in found[count]) for count in (1, 2))
        about[key] = {"one": round(one, 2), "two": round(two, 2), "ratio": round(one / two, 3)}
        print(f"{key:10} one process {one:6.2f} s, two {two:6.2f} s: {one / two:.2f} times as fast")
    print(f"the same samples: {same}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return about


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, one round, nothing written")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, default=1280, help="samples")
    args = parser.parse_args()
    if args.work is not None:
        work(args.work, args.n, args.meet)
    elif args.quick:
        main(2 * BATCH, 1)
    else:
        RESULTS.write_text(json.dumps(main(args.n, 5), indent=2) + "\n")
