"""Contestant: CTranslate2, greedy, static batches (run with the reference environment's Python)."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import ctranslate2


def run(generator: ctranslate2.Generator, case: dict) -> dict:
    """A static batch ends with its longest answer, as CTranslate2 cannot be told a length per row."""
    began = time.perf_counter()
    for first in range(0, len(case["prompts"]), case["batch"]):
        prompts = case["prompts"][first : first + case["batch"]]
        longest = max(case["output_tokens"][first : first + case["batch"]])
        generator.generate_batch(
            [[f"t{token}" for token in prompt] for prompt in prompts],
            max_length=longest,
            min_length=longest,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=0,
        )
    return {"seconds": time.perf_counter() - began, "new_tokens": sum(case["output_tokens"])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    flags = parser.parse_args()
    converted = pathlib.Path(flags.model) / f"ctranslate2-{flags.dtype}"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(flags.model).convert(str(converted), quantization=flags.dtype)
    generator = ctranslate2.Generator(str(converted), device="cpu", inter_threads=1, intra_threads=2)
    print(json.dumps({"ready": {"ctranslate2": ctranslate2.__version__}}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(generator, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
