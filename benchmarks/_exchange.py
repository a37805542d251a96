"""What a compiled step sends between devices: counted in its HLO, and predicted from its sizes."""

import dataclasses
import math
import re
from typing import Literal

KINDS = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")

# A started collective is counted where it is done, as there its type is that of the result alone.
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-done)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BRANCH = re.compile(r"(true|false)_computation=%?([\w.-]+)")
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(
    r"replica_groups=(?:mesh\[([^\]]*)\] \{([^}]*)\}|\[\d+,(\d+)\]|\{\{([\d,]*)\})"
)
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """Bytes of the results of collectives on one device, by kind of collective.

    Attributes:
      usual: of a step; collectives of a device with itself are left out.
      slow_way: of a step whose conditionals all take their other branch (`lax.cond` of True).
      turn: of one turn of each loop whose number of turns is not known before it runs.
    """

    usual: dict[str, int]
    slow_way: dict[str, int]
    turn: dict[str, int]


def exchanged(hlo: str) -> Exchanged:
    """Returns what a compiled program, as `compiled.as_text()` gives it, sends."""
    computations, entry = _computations(hlo)
    sums = [dict.fromkeys(KINDS, 0) for _ in range(3)]
    for branch in (0, 1):
        _count(computations, entry, branch, 1, sums[branch], sums[2] if branch == 0 else {})
    usual, slow_way, turn = ({k: v for k, v in kinds.items() if v} for kinds in sums)
    return Exchanged(usual, slow_way, turn)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif " = " in line:
            lines.append(line)
    return found, entry


def _count(
    computations: dict[str, list[str]],
    name: str,
    branch: int,
    times: int,
    total: dict[str, int],
    turn: dict[str, int],
) -> None:
    """Adds what a computation and those it calls send; a loop of unknown length adds to `turn`."""
    for line in computations.get(name, ()):
        collective = _COLLECTIVE.search(line)
        if collective:
            kind, size = collective[2], _bytes(collective[1])
            if not _alone(line):
                total[kind] = total.get(kind, 0) + times * size
            continue
        for called in _CALLED.findall(line):
            _count(computations, called, branch, times, total, turn)
        listed = _BRANCHES.search(line)
        # Branch 0 is that of False.
        pair = [n.strip(" %") for n in listed[1].split(",")] if listed else []
        pair = pair or [called for _, called in sorted(_BRANCH.findall(line))]
        if pair:
            _count(computations, pair[min(branch, len(pair) - 1)], branch, times, total, turn)
        body, trips = _BODY.search(line), _TRIPS.search(line)
        if body and trips:
            _count(computations, body[1], branch, times * int(trips[1]), total, turn)
        elif body:
            _count(computations, body[1], branch, times, turn, turn)


def _alone(line: str) -> bool:
    """Returns whether a collective is among groups of one device, and sends nothing."""
    groups = _GROUPS.search(line)
    if groups is None:
        return False
    sizes, names, size, listed = groups.groups()
    if names is not None:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
        return all(axes[name] == "1" for name in re.findall(r"'(\w+)'", names))
    return size == "1" if size else "," not in listed


def _bytes(shapes: str) -> int:
    """Returns the bytes of an HLO type, such as (f32[8,64]{1,0}, pred[])."""
    size = 0
    for _, bits, dimensions in _ARRAY.findall(shapes):
        count = math.prod(int(d) for d in dimensions.split(",") if d)
        size += count * max(1, int(bits or 8) // 8)
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What decides how much a step of a model with one table sends.

    Attributes:
      data, model: the mesh.
      placement: of the table.
      rows, width: of the table.
      value_bytes: of a value of the table, 4 or 2.
      ids: ids by which a device's part of the batch looks rows up.
      shared: how many of them are the same on all devices.
      tokens: positions of a device's part of the batch, when the loss reads the whole table; or 0.
      dense_bytes: of all parameters but the table.
      slack: as in `MeshConfig`.
    """

    data: int
    model: int
    placement: Literal["replicated", "row", "column"]
    rows: int
    width: int
    value_bytes: int = 4
    ids: int
    shared: int = 0
    tokens: int = 0
    dense_bytes: int
    slack: float = 2.0


def predicted(sizes: Sizes) -> dict[str, int]:
    """Returns bytes by kind, as `Exchanged.usual`, from the formula in docs/scaling.md."""
    data, model, width = sizes.data, sizes.model, sizes.width
    devices, wanted = data * model, sizes.ids + 1
    if devices == 1:
        return {}
    distinct = devices * (sizes.ids - sizes.shared) + sizes.shared
    dense = bool(sizes.tokens) or distinct + 1 >= sizes.rows
    sent = dict.fromkeys(KINDS, 0)
    # Beside the parameters: the loss and the weights, and the overflow.
    sent["all-reduce"] = sizes.dense_bytes + 12
    block, asked, sharers = sizes.rows, devices * wanted, devices
    if sizes.placement == "row":
        even = wanted / model
        share = math.ceil(max(sizes.slack * even, even + 6 * math.sqrt(even) + 8))
        share = min(wanted, -(-share // 8) * 8)
        block, asked, sharers = -(-sizes.rows // model), model * share, data
        sent["all-to-all"] = 4 * asked + 2 * asked * width * sizes.value_bytes
        if share < wanted:
            sent["all-reduce"] += 4  # whether the slow way is needed
    elif sizes.placement == "column":
        width, asked, sharers = width // model, model * wanted, data
        sent["all-to-all"] = 2 * asked * width * sizes.value_bytes
        sent["all-gather"] = 4 * asked
    if sharers > 1:
        everyone = asked if sizes.placement == "replicated" else data * asked
        touched = block if dense else min(everyone, block + 1)
        sent["all-gather"] += 0 if dense else 4 * everyone
        sent["all-reduce"] += touched * width * sizes.value_bytes
    if sizes.tokens and sizes.placement == "row":
        # Vectors in float32, targets and weights of all devices of a group, and gradients back.
        sent["all-gather"] += model * sizes.tokens * (4 * width + 8)
        sent["reduce-scatter"] = sizes.tokens * 4 * width
    return {kind: size for kind, size in sent.items() if size}
