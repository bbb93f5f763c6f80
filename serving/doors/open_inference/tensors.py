"""Elements of tensors off the wire and onto it: raw little-endian bytes, or from some clients typed contents."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from serving.doors.open_inference.models import ANY_LENGTH, Model, Tensor
from serving.proto.inference import inference_pb2 as pb

_LENGTH = struct.Struct("<I")

# By datatype: how raw elements are written, and the field of typed ones.
_FORMS = {
    "BOOL": ("?", "bool_contents"),
    "INT8": ("<i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "UINT8": ("<u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "FP32": ("<f4", "fp32_contents"),
    "BYTES": ("", "bytes_contents"),
}
_TAKEN = {
    "BOOL": ("BOOL",),
    "BYTES": ("BYTES",),
    # Any width: clients send what numpy made of their integers.
    "INT32": tuple(name for name in _FORMS if "INT" in name),
}


def read_inputs(model: Model, request: pb.ModelInferRequest) -> dict[str, list[object]]:
    """Elements by the name of the input. Raises ValueError with one line."""
    known = {tensor.name: tensor for tensor in model.inputs}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ValueError(
            f"raw_input_contents: has {len(raw)} entries for {len(request.inputs)} inputs; give one for each"
        )
    found: dict[str, list[object]] = {}
    for index, given in enumerate(request.inputs):
        if given.name not in known:
            raise ValueError(f"{given.name[:60]}: unknown input of {model.name}; known are {', '.join(known)}")
        if given.name in found:
            raise ValueError(f"{given.name}: is given twice")
        if given.parameters:
            raise ValueError(f"{given.name}: has parameters (shared memory is not served); send its elements")
        if raw and given.HasField("contents"):
            raise ValueError(f"{given.name}: has contents beside raw_input_contents; give one of them")
        found[given.name] = _elements(known[given.name], given, raw[index] if raw else None)
    for tensor in model.inputs:
        if not tensor.optional and tensor.name not in found:
            raise ValueError(f"{tensor.name}: is missing; {model.name} needs it")
    return found


def _elements(tensor: Tensor, given: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[object]:
    taken = _TAKEN[tensor.datatype]
    if given.datatype not in taken:
        raise ValueError(f"{tensor.name}: datatype {given.datatype[:20]!r} is not {' or '.join(taken)}")
    shape = list(given.shape)
    # Some clients put a batch dimension of 1 in front.
    length = shape[-1] if shape else 1
    if (
        len(shape) > 2
        or any(each != 1 for each in shape[:-1])
        or length < 0
        or tensor.length not in (ANY_LENGTH, length)
    ):
        wanted = "N" if tensor.length == ANY_LENGTH else str(tensor.length)
        raise ValueError(f"{tensor.name}: shape {str(shape)[:60]} is not [{wanted}]")
    form, field = _FORMS[given.datatype]
    if raw is None:
        elements = list(getattr(given.contents, field))
    elif given.datatype == "BYTES":
        elements = _split(tensor.name, raw)
    else:
        width = np.dtype(form).itemsize
        if len(raw) % width:
            raise ValueError(f"{tensor.name}: {len(raw)} bytes are no whole number of {given.datatype} elements")
        elements = np.frombuffer(raw, form).tolist()
    if len(elements) != length:
        raise ValueError(f"{tensor.name}: shape {shape} has {length} elements, but {len(elements)} came")
    return elements


def _split(name: str, raw: bytes) -> list[object]:
    """Elements of BYTES, each behind its length."""
    elements: list[object] = []
    place = 0
    while place < len(raw):
        begin = place + _LENGTH.size
        if begin > len(raw):
            raise ValueError(f"{name}: its bytes end inside an element's length")
        place = begin + _LENGTH.unpack_from(raw, place)[0]
        if place > len(raw):
            raise ValueError(f"{name}: its bytes end inside an element")
        elements.append(raw[begin:place])
    return elements


def add_output(response: pb.ModelInferResponse, tensor: Tensor, elements: Sequence[str] | Sequence[float]) -> None:
    """Appends an output and its raw contents."""
    response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=[len(elements)])
    if tensor.datatype == "BYTES":
        texts = [str(element).encode() for element in elements]
        raw = b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    else:
        raw = np.array(elements, _FORMS[tensor.datatype][0]).tobytes()
    response.raw_output_contents.append(raw)


def text_of(name: str, found: Mapping[str, list[object]]) -> str:
    """The one element of a BYTES input. Raises ValueError with one line."""
    (element,) = found[name]
    assert isinstance(element, bytes)
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: is not valid UTF-8") from None
