"""How much a checkpoint looks like the work of ransomware, from what its cycle wrote, against what is usual: pure.

Per disk two shares are looked at, of the data that the disk holds: what was written at all, and what of it looks like
noise. What is usual is their median over the disk's earlier cycles, and how much they vary is their median absolute
deviation: both stay where they are while fewer than half of the cycles are strange.

    excess = share - median - 3 standard deviations (1.4826 · MAD)

Noise counts in full where its bytes are spread as evenly as a cipher's, and a little where they are not, as in archives
and pictures. A copy of a large archive therefore shows, and is not taken for an attack. What a full copy wrote says
nothing: there is nothing to compare it with.

Who encrypts a little in each cycle stays within what varies, and is what is usual before long. Therefore the noise of
many cycles is looked at too: what is usual for it is taken from the oldest third of a long history, and what is above
it, in cycles whose noise is a cipher's, is added up from now backwards for as long as at least every other cycle shows
it. What the disk has grown by meanwhile is taken off: new files that are encrypted destroy nothing. So a few archives,
and a disk that was always written like that, do not add up.

    creep = sum of excesses of a stretch of 8 cycles or more - growth

Nothing else is known than what is in the manifests, so a catalogue that was rebuilt comes to the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from farshore.model.base import Report
from farshore.model.checkpoint import DiskContent, Manifest
from farshore.units import MIB, format_size

#: From here on a checkpoint is flagged.
FLAGGED_FROM: Final = 60
#: Earlier cycles of a disk that say what is usual.
BASELINE_MAX: Final = 24
#: Earlier cycles that are looked at for an encryption that creeps: a day of cycles of 15 minutes, in which a quarter
#: of a percent of the disk in each adds up to a flag.
HISTORY_MAX: Final = 96
#: Fewer cycles than this in the oldest third say nothing of what is usual, fewer in a stretch are no stretch.
REFERENCE_LEAST: Final = 12
STRETCH_LEAST: Final = 8
#: This much more noise than usual, as a share of what the disk holds, gives all of the points for noise.
NOISE_FULL: Final = 0.2
NOISE_POINTS: Final = 70.0
#: What is left of them where a compressor made the noise.
COMPRESSED_WEIGHT: Final = 0.4
#: Chi-squared per degree of freedom of what a cipher makes: 1 ± 0.09; four standard deviations.
CIPHER_UNTIL: Final = 1.36
CHANGE_FULL: Final = 0.5
CHANGE_POINTS: Final = 30.0
#: Disks that hold less, and cycles that write less noise, would make much of little.
HELD_LEAST: Final = 32 * MIB
NOISE_LEAST: Final = 4 * MIB
_DEVIATIONS: Final = 3 * 1.4826


class Score(Report):
    """What is thought of a checkpoint.

    Attributes:
        value: 0 (as always) to 100 (all that the disk holds was encrypted): the highest of its disks.
        flagged: whether that is a sign of encryption.
        reasons: sentences that say why, the worst disk first.
        scored: False where there was nothing to compare with: a first or full copy.
        tainted_by: an earlier checkpoint that is flagged; what came after holds the same damage.
    """

    value: int = 0
    flagged: bool = False
    reasons: tuple[str, ...] = ()
    scored: bool = False
    tainted_by: str | None = None


def score(manifest: Manifest, earlier: Mapping[str, Sequence[DiskContent]]) -> Score:
    """Return what is thought of ``manifest``.

    ``earlier``: what its disks' cycles before it wrote, by disk key, oldest first, without those that are flagged.
    """
    names = {facts.machine_id: facts.name for facts in manifest.machines}
    found = [
        _disk(_called(disk.disk_key, names), disk.content, earlier.get(disk.disk_key, ()))
        for disk in manifest.disks
        if disk.content is not None and disk.content.mode != "full"
    ]
    if not found:
        return Score()
    found.sort(key=lambda pair: -pair[0])
    value = round(found[0][0])
    return Score(
        value=value,
        flagged=value >= FLAGGED_FROM,
        reasons=tuple(sentence for points, sentence in found if sentence and points >= 1),
        scored=True,
    )


def _called(disk_key: str, names: Mapping[str, str]) -> str:
    machine_id, _, disk_id = disk_key.rpartition("/")
    return f"{names.get(machine_id, machine_id)}/{disk_id}"


def _disk(name: str, now: DiskContent, earlier: Sequence[DiskContent]) -> tuple[float, str]:
    """Return a disk's points, 0 to 100, and a sentence about them."""
    history = [one for one in earlier if one.mode != "full"][-HISTORY_MAX:]
    usual = history[-BASELINE_MAX:]
    noise, change = _noise_share(now), _change_share(now)
    noise_excess = _excess(noise, [_noise_share(one) for one in usual])
    change_excess = _excess(change, [_change_share(one) for one in usual])
    cipher = now.uniformity <= CIPHER_UNTIL
    points = CHANGE_POINTS * min(1.0, change_excess / CHANGE_FULL)
    if noise * _held(now) >= NOISE_LEAST:
        weight = 1.0 if cipher else COMPRESSED_WEIGHT
        points += weight * NOISE_POINTS * min(1.0, noise_excess / NOISE_FULL)
    creep, cycles = _creep([*history, now])
    creeping = NOISE_POINTS * min(1.0, creep / NOISE_FULL)
    if creeping > max(points, 1.0):
        return creeping, (
            f"{name}: {creep:.0%} of what the disk holds was overwritten with noise, as even as encrypted data,"
            f" a little in each of {cycles} cycles; it began before this checkpoint"
        )
    if points < 1:
        return 0.0, ""
    kind = "noise, spread as evenly as encrypted data" if cipher else "noise, uneven as compressed data"
    if not now.noisy:
        kind = "no noise"
    typical = median([_change_share(one) for one in usual]) if usual else None
    usually = f"usually {typical:.1%}" if typical is not None else "nothing is known of what is usual"
    share = now.noisy / now.samples if now.samples else 0.0
    return points, (
        f"{name}: {format_size(now.written_bytes)} were written, {change:.0%} of what the disk holds ({usually});"
        f" {share:.0%} of it {kind}"
    )


def _creep(cycles: Sequence[DiskContent]) -> tuple[float, int]:
    """Return how much was encrypted little by little, as a share of the disk, and in how many of the newest cycles.

    ``cycles``: oldest first, this one last.
    """
    cut = len(cycles) // 3
    if cut < REFERENCE_LEAST:
        return 0.0, 0
    reference = [_noise_share(one) for one in cycles[:cut]]
    held = _held(cycles[-1])
    best, stretch = 0.0, 0
    encrypted_bytes, above = 0.0, 0
    for seen, one in enumerate(reversed(cycles[cut:]), 1):
        excess = _excess(_noise_share(one), reference) if 0 < one.uniformity <= CIPHER_UNTIL else 0.0
        encrypted_bytes += excess * _held(one)
        above += excess > 0
        creep = min(1.0, (encrypted_bytes - max(0, held - _held(one))) / held)
        if above >= STRETCH_LEAST and 2 * above >= seen and creep > best:
            best, stretch = creep, seen
    return best, stretch


def _held(content: DiskContent) -> int:
    return max(content.held_bytes, HELD_LEAST)


def _noise_share(content: DiskContent) -> float:
    if not content.samples:
        return 0.0
    return min(1.0, content.written_bytes * content.noisy / content.samples / _held(content))


def _change_share(content: DiskContent) -> float:
    return min(1.0, content.written_bytes / _held(content))


def _excess(value: float, usual: Sequence[float]) -> float:
    """Return by how much a share is above what is usual, and above how much that varies."""
    if not usual:
        return value
    middle = median(usual)
    deviation = median(abs(one - middle) for one in usual)
    return max(0.0, value - middle - _DEVIATIONS * deviation)
