"""What may be said of a sample: nanoGPT's keys of sample.py."""

from __future__ import annotations

from dataclasses import dataclass

from nanoscale.spec.options import keys_of, option


@dataclass(frozen=True)
class SampleOptions:
    """nanoGPT's keys and defaults, but that device, dtype and the cache look after themselves."""

    init_from: str = option(
        "resume", "from the run in out_dir; or weights, as train takes them", path=True
    )
    out_dir: str = option("out", "any run folder, or nanoGPT's", path=True)
    start: str = option("\n", "the prompt, or FILE:PATH to read it from")
    data_root: str | None = option(
        None, "where the run's dataset lies now; None: where it did", path=True
    )
    num_samples: int = option(10, "samples to draw", least=1)
    max_new_tokens: int = option(500, "tokens generated in each", least=0)
    temperature: float = option(0.8, "divides the logits; 0: always the likeliest token", least=0)
    top_k: int | None = option(200, "draw among the k likeliest only; None: all", least=1)
    seed: int = option(1337, "of the draws", least=0, below=2**63)
    device: str = option("auto", "auto: cuda, mps or cpu")
    dtype: str = option(
        "auto",
        "of the products: bfloat16 or float16 on CUDA, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = option(False, "torch.compile the step")
    use_cache: bool = option(True, "keep keys and values; the tokens are the same without")


SAMPLE_KEYS = keys_of(SampleOptions)
