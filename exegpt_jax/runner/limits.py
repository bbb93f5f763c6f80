"""What a Plan can never run, refused when it is asked for: one line that names the field and the remedy."""

from __future__ import annotations

from exegpt_jax.engine.api import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS
from exegpt_jax.runner.request import Request
from solver.plan.plan import Plan


def check(request: Request, plan: Plan) -> None:
    """Raises ValueError if no phase of this plan could ever hold the request."""
    prompt, generated, sampling = len(request.prompt_ids), len(request.generated_ids), request.sampling
    if prompt == 0:
        raise ValueError("prompt: empty; give at least one token")
    if prompt > plan.max_prompt_tokens:
        raise ValueError(f"prompt: {prompt} tokens exceed the limit of {plan.max_prompt_tokens}; shorten it")
    if prompt + sampling.max_tokens > plan.cache_tokens:
        raise ValueError(
            f"max_tokens: {sampling.max_tokens} and a prompt of {prompt} tokens exceed {plan.cache_tokens} "
            f"positions; ask for at most {plan.cache_tokens - prompt}"
        )
    if generated and plan.first_token == "decode":
        raise ValueError(
            f"generated_ids: {generated} given, but this model's decoder cannot go on behind tokens that it has not "
            "told; ask again from the start"
        )
    if generated >= sampling.max_tokens:
        raise ValueError(f"max_tokens: {sampling.max_tokens} were generated already; nothing is left to do")
    if prompt + generated > plan.max_prompt_tokens:
        raise ValueError(
            f"generated_ids: {generated} behind a prompt of {prompt} exceed the {plan.max_prompt_tokens} tokens that "
            "are encoded at once; resume it under a plan with a larger max_prompt_tokens"
        )
    for name, most in (("stop_ids", MAX_STOP_IDS), ("logit_bias", MAX_LOGIT_BIAS)):
        if len(getattr(sampling, name)) > most:
            raise ValueError(f"{name}: {len(getattr(sampling, name))} entries exceed {most}; give fewer")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise ValueError(f"logprobs: {sampling.logprobs} is out of range; give 0 to {MAX_LOGPROBS}")
