"""Messages that nobody would send: every field of any message, with values from the edges of what it can hold, and
bytes that are no message any more."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

TEXTS = (
    *("", "x", "a b c", "\0", "\U0001f600", "é" * 200, "ab " * 2000, "\n\r\t", "%s%n{0}", "'; --", "stop", "user"),
    *("text_input", "sampling_parameters", "max_tokens", "stream", "input_ids", "request_output_len", "BYTES", "INT32"),
    *("BOOL", "INT64", "UINT8", "1", "True", "null", "{}", "[" * 3000, '{"n": 3, "temperature": 1}', '{"seed": 1e999}'),
    *('{"stop": ["\\ud800"]}', '{"\\ud800": 1}', '{"max_tokens": 5, "\\udfff\\n": 1}', '{"temperature": NaN}'),
    *('{"logit_bias": {"1": -100, "x": []}}', '{"max_tokens": 1' + "0" * 5000 + "}", '{"logprobs": 3}', "9" * 30),
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    20,
    255,
    256,
    319,
    320,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
REALS = (0.0, -0.0, 1.0, 0.5, 2.0, -2.0, 100.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), 1e-6, 3600.0)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def scrambled(rng: random.Random, message: Message) -> Message:
    """The message with some of its fields, and of those inside, taken away or given values."""
    for field in message.DESCRIPTOR.fields:
        chance = rng.random()
        if chance < 0.1:
            message.ClearField(field.name)
        elif chance < 0.3:
            _fill(rng, message, field)
        elif _is_message(field) and not field.is_repeated and message.HasField(field.name):
            scrambled(rng, getattr(message, field.name))
    return message


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bits turned, bytes cut out, doubled or put in, or nothing but noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.choice([1, 2, 5, 40, 3000]))
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randint(0, len(found))
        end = rng.randint(begin, min(len(found), begin + 8))
        match rng.randrange(4):
            case 0 if begin < len(found):
                found[begin] ^= 1 << rng.randrange(8)
            case 1:
                del found[begin:end]
            case 2:
                found[begin:begin] = found[begin:end] * rng.choice([1, 300])
            case _:
                found[begin:begin] = rng.randbytes(rng.randint(1, 8))
    return bytes(found)


def _is_message(field: Any) -> bool:
    return bool(field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE)


def _is_map(field: Any) -> bool:
    return _is_message(field) and bool(field.message_type.GetOptions().map_entry)


def _fill(rng: random.Random, message: Message, field: Any) -> None:
    if not field.is_repeated:
        if _is_message(field):
            getattr(message, field.name).SetInParent()
            scrambled(rng, getattr(message, field.name))
        else:
            setattr(message, field.name, _value(rng, field))
        return
    into = getattr(message, field.name)
    if len(into) and not _is_map(field) and rng.random() < 0.6:
        # As many as before, so that what looks at each of them is reached.
        index = rng.randrange(len(into))
        if _is_message(field):
            scrambled(rng, into[index])
        else:
            into[index] = _value(rng, field)
        return
    count = rng.choice([0, 1, 1, 2, 5, 300])
    if _is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(count):
            name = _value(rng, key)
            if _is_message(value):
                scrambled(rng, into[name])
            else:
                into[name] = _value(rng, value)
    elif _is_message(field):
        for _ in range(min(count, 5)):
            scrambled(rng, into.add())
    else:
        into.extend(_value(rng, field) for _ in range(count))


def _value(rng: random.Random, field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            text = rng.choice(TEXTS).encode()
            if rng.random() < 0.6:
                return struct.pack("<I", len(text)) + text
            return rng.choice([text, rng.randbytes(4), struct.pack("<i", -1), b"\1"])
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(REALS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([each.number for each in field.enum_type.values])
    low, high = _RANGES[field.cpp_type]
    return rng.choice([number for number in NUMBERS if low <= number <= high])


def any_of(rng: random.Random, examples: Sequence[Message]) -> Message:
    """A copy of one."""
    example = rng.choice(examples)
    copy = type(example)()
    copy.CopyFrom(example)
    return copy
