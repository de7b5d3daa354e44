"""The samplers that are compared, by name. A new one is one function here, and its row in `KINDS`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dlm.diffusion.formulation import Formulation
from dlm.diffusion.readings import Autoregressive, Blocks, Joint
from dlm.diffusion.remask import AnyRemasker, Psi
from dlm.diffusion.reuse import Reuse
from dlm.diffusion.unmask import Confidence, FixedSteps, Threshold
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError
from dlm.lm import Sampler

Family = Literal[
    "steps",
    "one at a time",
    "confidence",
    "threshold",
    "remasked",
    "blocks",
    "reused",
    "causal",
    "verified",
    "relaxed",
    "transformers",
]
"""What samplers of one marker in the picture have in common."""

Needs = Literal["any-order", "masks", "blocks", "causal", "drafts", "plain"]
"""What a model must have: any order, masks alone for noise, blocks of masks, next tokens, drafts, or a plain folder."""


@dataclass(frozen=True)
class Kind:
    """A sampler by name.

    Attributes:
        name: As it is asked for, such as `steps-32`.
        family: What it is one of.
        needs: What a model must have.
        sampler: The sampler; None for the generation of transformers.
    """

    name: str
    family: Family
    needs: Needs
    sampler: Sampler | None


def _steps(number: str) -> Kind:
    return Kind(f"steps-{number}", "steps", "any-order", Sampler(budget=FixedSteps(int(number))))


def _one() -> Kind:
    return Kind("one", "one at a time", "masks", Sampler(verify=False))


def _confidence(number: str | None) -> Kind:
    budget = FixedSteps(int(number)) if number else None
    name = f"confidence-{number}" if number else "confidence"
    return Kind(name, "confidence", "masks", Sampler(order=Confidence(), budget=budget))


def _threshold(number: str) -> Kind:
    return Kind(f"threshold-{number}", "threshold", "masks", Sampler(budget=Threshold(float(number))))


def _blocks(length: str, steps: str | None) -> Kind:
    if steps and int(steps) > int(length):
        raise ValueError(f"a block of {length} takes no more than {length} steps")
    name = f"blocks-{length}-{steps}" if steps else f"blocks-{length}"
    budget = FixedSteps(int(steps)) if steps else None
    return Kind(name, "blocks", "blocks", Sampler(block_length=int(length), budget=budget))


def _reused(base: str, reach: Literal["dual", "prefix"], refresh: str) -> Kind:
    whole = kind(base)
    if whole.sampler is None or whole.sampler.reuse or whole.needs not in ("masks", "any-order", "blocks"):
        raise ValueError(f"{base} uses no keys and values again that a change may reach")
    sampler = replace(whole.sampler, reuse=Reuse(reach, int(refresh)))
    return Kind(f"{base}+{reach}-{refresh}", "reused", "masks", sampler)


def _remasked(name: str, number: str, eta: str | None) -> Kind:
    if name not in (remaskers := {choice.name: choice for choice in get_args(AnyRemasker)}):
        raise ValueError(f"there is no remasker {name!r}; valid: {', '.join(remaskers)}")
    remask: AnyRemasker = remaskers[name](**({} if eta is None else {"eta": float(eta)}))
    sampler = Sampler(budget=FixedSteps(int(number)), remask=remask)
    asked = f"remask-{name}-{number}" + (f"@{eta}" if eta is not None else "")
    return Kind(asked, "remasked", "any-order" if isinstance(remask, Psi) else "masks", sampler)


def _causal() -> Kind:
    return Kind("causal", "causal", "causal", Sampler(drafts=0))


def _verified(drafts: str, accept: str | None) -> Kind:
    if int(drafts) < 1:
        raise ValueError("it has at least one draft; without drafts it is called causal")
    rule = Verified(int(drafts), accept=float(accept or 1.0))
    relaxed = rule.accept < 1.0
    name = f"verified-{drafts}@{accept}" if relaxed else f"verified-{drafts}"
    sampler = Sampler(drafts=rule.drafts, accept=rule.accept)
    return Kind(name, "relaxed" if relaxed else "verified", "drafts", sampler)


def _transformers() -> Kind:
    return Kind("transformers", "transformers", "plain", None)


_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
KINDS: dict[str, tuple[str, Callable[..., Kind]]] = {
    "steps-N": (r"steps-(\d+)", _steps),
    "one": ("one", _one),
    "confidence": ("confidence()", lambda _: _confidence(None)),
    "confidence-N": (r"confidence-(\d+)", _confidence),
    "threshold-P": (f"threshold-{_NUMBER}", _threshold),
    "blocks-S": (r"blocks-([1-9]\d*)()", _blocks),
    "blocks-S-N": (r"blocks-([1-9]\d*)-(\d+)", _blocks),
    "NAME+dual-R": (r"(.+)\+(dual)-(\d+)", _reused),
    "NAME+prefix-R": (r"(.+)\+(prefix)-(\d+)", _reused),
    "remask-NAME-N": (r"remask-([a-z]+)-(\d+)()", lambda name, number, _: _remasked(name, number, None)),
    "remask-NAME-N@E": (rf"remask-([a-z]+)-(\d+)@{_NUMBER}", _remasked),
    "causal": ("causal", _causal),
    "verified-K": (r"verified-(\d+)()", lambda drafts, _: _verified(drafts, None)),
    "verified-K@A": (rf"verified-(\d+)@{_NUMBER}", _verified),
    "transformers": ("transformers", _transformers),
}
"""Every sampler: how it is written, and what it is. N steps, a probability P, a remasker's NAME and eta E, blocks of S,
keys and values used again for R calls, K drafts, accepted at A below 1."""


def kind(name: str) -> Kind:
    """The sampler of a name.

    Args:
        name: As in `KINDS`, with numbers.

    Returns:
        The sampler.

    Raises:
        ConfigError: There is none of that name, or a number is out of range.
    """
    for pattern, make in KINDS.values():
        if found := re.fullmatch(pattern, name, re.ASCII):
            try:
                return make(*found.groups())
            except ValueError as error:
                raise ConfigError(f"--samplers: {name}: {error}") from error
    raise ConfigError(f"--samplers: there is no sampler {name!r}; valid: {', '.join(KINDS)}")


def suits(asked: Kind, formulation: Formulation | None, *, plain: bool) -> bool:
    """Whether a model can write by a sampler.

    Args:
        asked: The sampler.
        formulation: The model's; None for an autoregressive model that `dlm` did not write.
        plain: Whether transformers reads the model too.

    Returns:
        Whether it can.
    """
    if asked.needs == "plain" or formulation is None:
        return plain and asked.needs == "plain"
    readings = formulation.readings
    how = asked.sampler
    if how and how.reuse and how.block_length and readings.remembers:
        return False  # its memory is exact
    return {
        "any-order": readings.any_order,
        "masks": readings.any_order and not formulation.noise.randomises,
        "blocks": not formulation.noise.randomises and (readings.any_order or readings.remembers),
        "causal": readings.causal,
        "drafts": readings.causal and readings.remembers,
    }[asked.needs]


def suitable(formulation: Formulation | None) -> Sequence[Kind]:
    """The samplers that a model is compared by where none are asked for.

    Args:
        formulation: The model's; None for an autoregressive model that `dlm` did not write.

    Returns:
        The samplers; none where no sampler compared here suits the model.
    """
    match formulation and formulation.readings:
        case None:
            names = ["transformers"]
        case Autoregressive():
            names = ["causal", "transformers"]
        case Joint():
            verified = [f"verified-{drafts}" for drafts in (1, 2, 3, 4)]
            relaxed = ["verified-4@0.5", "verified-4@0.25"]
            names = ["causal", *verified, *relaxed, "blocks-4-2", "blocks-8-4", "steps-32", "steps-64"]
        case Blocks(size=size):
            names = [f"blocks-{size}", f"blocks-{size}-{max(1, size // 2)}", f"blocks-{size}-{max(1, size // 4)}"]
        case _:
            names = ["steps-16", "steps-32", "steps-64", "one", "confidence", "confidence-32"]
    found = [kind(name) for name in dict.fromkeys(names)]
    return [each for each in found if each.needs == "plain" or suits(each, formulation, plain=True)]
