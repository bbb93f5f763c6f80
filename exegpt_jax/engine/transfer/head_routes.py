"""Which device sends which key/value heads to which, between two stages of any tensor degrees.

Each stage stores every real head as often as its degree asks for (`ModelSpec.stored_kv_heads`), in order, evenly over
its devices. A head that several devices hold is sent by one of them; a head that a device stores several times arrives
there once. Everything here is plain numbers; `exegpt_jax.engine.transfer.handover` moves the arrays.
"""

from __future__ import annotations

import dataclasses
import math

Heads = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class HeadRoutes:
    """A hand-over of heads. Devices are tensor ranks; heads are counted within a device.

    Attributes:
      pieces: [sender][piece]: heads that it cuts out of what it holds; all are equally long, and all senders have
        equally many.
      messages: [receiver][message]: (sender, piece); every receiver gets equally many.
      joined: [receiver]: for each head that it stores, its place in its messages laid end to end.
      whole: every sender's one piece is all that it holds, so nothing needs to be cut.
      straight: every receiver's one message is all that it stores, so nothing needs to be joined.
    """

    pieces: tuple[tuple[Heads, ...], ...]
    messages: tuple[tuple[tuple[int, int], ...], ...]
    joined: tuple[Heads, ...]
    whole: bool
    straight: bool


def head_routes(kv_heads: int, senders: int, receivers: int) -> HeadRoutes:
    """Routes from a stage of tensor degree `senders` to one of `receivers`, for a model of `kv_heads` real heads."""
    if senders == receivers:
        return _unchanged(kv_heads, senders)
    held = [_held(kv_heads, senders, rank) for rank in range(senders)]
    wanted = [_held(kv_heads, receivers, rank) for rank in range(receivers)]
    parts = [_parts(held, heads, rank / receivers) for rank, heads in enumerate(wanted)]
    size = max(len(real) for each in parts for _, real in each)
    pieces: list[list[Heads]] = [[] for _ in range(senders)]
    messages: list[list[tuple[int, int]]] = []
    joined: list[Heads] = []
    for each, heads in zip(parts, wanted, strict=True):
        messages.append([])
        place: dict[int, int] = {}
        for index, (sender, real) in enumerate(each):
            place |= {head: index * size + offset for offset, head in enumerate(real)}
            cut = _padded(tuple(held[sender].index(head) for head in real), size)
            if cut not in pieces[sender]:
                pieces[sender].append(cut)
            messages[-1].append((sender, pieces[sender].index(cut)))
        joined.append(tuple(place[head] for head in heads))
    # Every device runs the same program: who sends or receives less than another does something twice.
    most_pieces, most_messages = max(map(len, pieces)), max(map(len, messages))
    everything = tuple(range(len(held[0])))
    for cuts in pieces:
        cuts += [cuts[0] if cuts else _padded(everything[:size], size)] * (most_pieces - len(cuts))
    for some in messages:
        some += some[:1] * (most_messages - len(some))
    return HeadRoutes(
        pieces=tuple(map(tuple, pieces)),
        messages=tuple(map(tuple, messages)),
        joined=tuple(joined),
        whole=all(cuts == [everything] for cuts in pieces),
        straight=most_messages == 1 and all(places == tuple(range(size)) for places in joined),
    )


def _unchanged(kv_heads: int, degree: int) -> HeadRoutes:
    """Every device sends all it stores to its like."""
    everything = tuple(range(math.lcm(kv_heads, degree) // degree))
    messages = tuple(((rank, 0),) for rank in range(degree))
    return HeadRoutes(((everything,),) * degree, messages, (everything,) * degree, whole=True, straight=True)


def _held(kv_heads: int, degree: int, rank: int) -> Heads:
    """The real head behind each one that a device stores."""
    stored = math.lcm(kv_heads, degree)
    own, copies = stored // degree, stored // kv_heads
    return tuple((rank * own + index) // copies for index in range(own))


def _parts(held: list[Heads], wanted: Heads, at: float) -> list[tuple[int, Heads]]:
    """(sender, real heads) that together bring every wanted head once: long runs first, else whoever lies alike."""
    found: list[tuple[int, Heads]] = []
    left = sorted(set(wanted))
    while left:
        runs = [tuple(head for head in left if head in set(heads)) for heads in held]
        runs = [run if run[:1] == (left[0],) else () for run in runs]
        sender = max(range(len(held)), key=lambda rank: (len(runs[rank]), -abs(rank / len(held) - at)))
        found.append((sender, runs[sender]))
        left = left[len(runs[sender]) :]
    return found


def _padded(heads: Heads, size: int) -> Heads:
    return heads + heads[-1:] * (size - len(heads))
