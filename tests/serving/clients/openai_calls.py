"""The official client's side of `test_smg_openai`: one call with unchanged `openai`, or several at once.

openai_calls.py CASE URL JSON
"""

from __future__ import annotations

import concurrent.futures
import json
import sys

import openai


def chat(client, given):
    return client.chat.completions.create(**given).model_dump()


def completion(client, given):
    return client.completions.create(**given).model_dump()


def chat_stream(client, given):
    return [chunk.model_dump() for chunk in client.chat.completions.create(**given, stream=True)]


def completion_stream(client, given):
    return [chunk.model_dump() for chunk in client.completions.create(**given, stream=True)]


def completions_at_once(client, given):
    """One for each of a list, all under way together."""
    with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(lambda each: completion(client, each), given))


def leave(client, given):
    """Walks away from a stream after its first piece of text."""
    with client.completions.create(**given, stream=True) as stream:
        return next(chunk.model_dump() for chunk in stream if chunk.choices[0].text)


def models(client, _):
    return [model.id for model in client.models.list()]


def refuse(client, given):
    """Status and message of calls that must fail, each [case, arguments]."""
    refusals = []
    for case, arguments in given:
        try:
            CASES[case](client, arguments)
            refusals.append([200, ""])
        except openai.APIStatusError as error:
            refusals.append([error.status_code, str(error)])
    return refusals


def embedding(client, given):
    return client.embeddings.create(**given).model_dump()


CASES = {
    each.__name__: each
    for each in (
        *(chat, completion, chat_stream, completion_stream, completions_at_once, leave, models, refuse),
        embedding,
    )
}

if __name__ == "__main__":
    case, url, arguments = sys.argv[1:]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        print(json.dumps(CASES[case](client, json.loads(arguments))))
