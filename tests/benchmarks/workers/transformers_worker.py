"""Contestant: Hugging Face `transformers` generate, greedy, static batches (runs in the reference environment)."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
import transformers


class HiddenLengths(transformers.StoppingCriteria):
    """Ends each row at its own length, which generate() does not know; the batch runs until its longest row ends."""

    def __init__(self, prompt_tokens: int, output_tokens: list[int]) -> None:
        self.ends = prompt_tokens + torch.tensor(output_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def run(model: transformers.PreTrainedModel, case: dict) -> dict:
    began = time.perf_counter()
    produced = 0
    for first in range(0, len(case["prompts"]), case["batch"]):
        prompts = case["prompts"][first : first + case["batch"]]
        outputs = case["output_tokens"][first : first + case["batch"]]
        width = max(map(len, prompts))
        ids = torch.tensor([[2] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=case["max_tokens"],
            eos_token_id=None,
            pad_token_id=2,
            stopping_criteria=transformers.StoppingCriteriaList([HiddenLengths(width, outputs)]),
        )
        produced += sum(outputs)
    return {"seconds": time.perf_counter() - began, "new_tokens": produced}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    flags = parser.parse_args()
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(flags.model, dtype=getattr(torch, flags.dtype))
    model.eval()
    model.generation_config.eos_token_id = None
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"ready": versions}), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(run(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
