"""What the doctor finds with torch, as a process of its own: a broken torch may end it anyhow.

`python -m nanoscale.commands.torch_findings [try]` prints a line of JSON for each finding, after a
mark that tells it from what torch prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module

from nanoscale.commands.findings import (
    FAULTY,
    LACKING,
    OK,
    Finding,
    distribution,
    looked,
    remedy_for,
    told,
)
from nanoscale.errors import DONE, PACKAGES, counted

MARK = "finding: "
SMALL_MODEL = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "block_size": 64,
    "batch_size": 12,
    "gradient_accumulation_steps": 1,
}
REINSTALL = "pip install --force-reinstall torch"


def torch() -> Iterator[Finding]:
    """torch's version, and for what it was built; an import that fails is found here."""
    try:
        from nanoscale.training import hardware
    except Exception as e:
        said = f"it cannot be imported: {told(e)}"
        yield Finding("Python", "torch", FAULTY, said, remedy_for(e, REINSTALL))
        return
    version, built_for = hardware.torch_build()
    yield Finding("Python", "torch", OK, f"{version}, built for {built_for}")


def imports() -> Iterator[Finding]:
    """The packages that are installed, and cannot be imported all the same."""
    for name in PACKAGES:
        try:
            import_module(name)
        except Exception as e:
            remedy = f"pip install --force-reinstall {distribution(name)}"
            said = f"it cannot be imported: {told(e)}"
            yield Finding("Python", name, FAULTY, said, remedy_for(e, remedy))


def devices() -> Iterator[Finding]:
    """The CPU's instructions that matter, and what else computes here."""
    from nanoscale.experiments.machine import nvidia_gpus
    from nanoscale.training import hardware

    abilities = hardware.cpu_abilities()
    there = [name for name, has in abilities.items() if has]
    lacking = [name for name, has in abilities.items() if not has]
    said = ", ".join(there) or "none by which products would be fast"
    if not abilities:
        said = "torch does not know them here"
    if lacking:
        said += f"; without {', '.join(lacking)}"
    yield Finding("Machine", "instructions", OK, said)

    gpus = hardware.gpus()
    for name, size in gpus:
        room = f", {size / 2**30:.0f} GiB" if size else ""
        yield Finding("Machine", "GPU", OK, f"{name}{room}")
    if not gpus and nvidia_gpus():
        said = "an NVIDIA GPU is here, which this torch does not find"
        remedy = "install a build of torch for CUDA (pytorch.org), and a driver as new"
        yield Finding("Machine", "GPU", LACKING, said, remedy)
    elif not gpus:
        yield Finding("Machine", "GPU", OK, "none; models train on the CPU")


def kernels() -> Iterator[Finding]:
    """The compiler, and our kernels; made now if that has not been done."""
    from nanoscale.model import kernels

    name = kernels.compiler_name()
    if name is None:
        given = os.environ.get("CXX")
        said = f"CXX={given} does not run" if given else "none found"
        remedy = "unset it, or name one" if given else kernels.how_to_get_a_compiler()
        yield Finding("Kernels", "compiler", LACKING, said, remedy)
    else:
        yield Finding("Kernels", "compiler", OK, name)
    if kernels.library() is not None:
        path = kernels.built() or kernels.shipped()
        yield Finding("Kernels", "kernels", OK, str(path))
        return
    said = f"{kernels.why_not()}: torch's own operations do the work, about half as fast"
    yield Finding("Kernels", "kernels", LACKING, said)


def choice() -> Iterator[Finding]:
    """How a small run would compute here, if nothing was asked."""
    from nanoscale.spec.resolve import resolve
    from nanoscale.spec.sources import Source, build
    from nanoscale.training import hardware, numerics

    config = resolve(build([Source("doctor", SMALL_MODEL)]), 65)
    chosen = numerics.decide(config, hardware.pick_device(config))
    how = [
        f"{chosen.device} ({chosen.device_name})",
        chosen.dtype,
        f"{chosen.kernels} kernels",
        "compiled" if chosen.compile else "eager",
    ]
    if chosen.threads:
        how.append(counted(chosen.threads, "thread"))
    yield Finding("A run here", "a small run", OK, ", ".join(how))


def product() -> Iterator[Finding]:
    """How fast the device that a run would choose multiplies, in the types that it could."""
    from nanoscale.spec.config import ExperimentConfig
    from nanoscale.training import hardware

    device = hardware.pick_device(ExperimentConfig())
    speeds = []
    for name, flops in hardware.product_speeds(device).items():
        speeds.append(f"{flops / 1e9:,.0f} GFLOP/s in {name}")
    yield Finding("Tried", "a product", OK, f"of matrices on {device}: {', '.join(speeds)}")


def main() -> int:
    looks = [
        ("Python", imports),
        ("Machine", devices),
        ("Kernels", kernels),
        ("A run here", choice),
    ]
    if "try" in sys.argv[1:]:
        looks.append(("Tried", product))
    broken = False
    for part, look in [("Python", torch), *looks]:
        for finding in looked(part, look):
            print(f"{MARK}{json.dumps(asdict(finding))}", flush=True)
            broken |= finding.name == "torch" and finding.state == FAULTY
        if broken:  # nothing else can be found
            break
    return DONE


if __name__ == "__main__":
    sys.exit(main())
