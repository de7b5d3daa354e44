"""A model as lm-evaluation-harness asks it; as a program, its command line with such models."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate.utils import gather
from torch import Tensor
from typing_extensions import override

from dlm.diffusion.unmask import TokenChoice
from dlm.distributed import leave_process_group, process_state
from dlm.errors import ConfigError, DataError, DlmError, one_line
from dlm.evaluate.requests import Answering, How, Pair, number_of
from dlm.lm import DiffusionLM
from dlm.model.tokenizer import fingerprint

try:
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as missing:
    NEEDED = "lm-evaluation-harness is not installed: pip install 'dlm[harness]', or pip install 'lm_eval>=0.4.13'"
    if __name__ == "__main__":
        sys.stderr.write(f"dlm: {NEEDED}\n")
        sys.exit(ConfigError.exit_code)
    raise ConfigError(NEEDED) from missing

NAME = "dlm_model"
"""What the harness calls such a model."""

GENERATED = 256
"""The tokens of an answer where a task says nothing, as for the harness's own models."""

SAMPLED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
"""The settings of a task's generation that are heeded."""

WEIGHTS: Mapping[str, Sequence[str | None]] = {
    "dtype": ("auto", "bf16", "fp16", "fp32"),
    "load": (None, "4bit", "8bit"),
}
"""What weights may be held in."""

log = logging.getLogger(__name__)


class HarnessModel(LM):
    """Answers the requests of lm-evaluation-harness.

    A log-likelihood is that of the continuation alone, given the context: no end of text is scored. Of a reading with
    noise it is a lower bound; all requests of a document are scored under common random masks. `is_greedy` says whether
    greedy decoding, one token at a time, writes the continuation on a canvas of its length. A context that is too long
    loses its beginning.

    Attributes:
        answering: What answers them.
        ignored: Settings of a task's generation that have no part in a diffusion sampler.
    """

    def __init__(self, lm: DiffusionLM, how: How | None = None) -> None:
        """Puts a model before the harness.

        Args:
            lm: The model.
            how: How requests are answered.

        Raises:
            ConfigError: The model is not read so, or that reading decodes nothing greedily and `greedy` is asked.
        """
        super().__init__()
        self._team = process_state()
        self._rank, self._world_size, self._device = self._team.process_index, self._team.num_processes, lm.device
        self.answering = Answering(lm, how or How(), shows=self._rank == 0)
        self.ignored: set[str] = set()
        self._template: str | None = None

    @override
    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """As `create_from_arg_obj`, from `key=value,key=value`."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @override
    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Loads the model that the harness's `--model_args` describe.

        Args:
            arg_dict: `path`, and any of `reading`, `draws`, `seed`, `greedy`, `length`, `stride`, `dtype`, `load` and
                `mask_token`.
            additional_config: The harness's own `batch_size` and `device`.

        Returns:
            The model.

        Raises:
            ConfigError: There is no such argument, or it is not valid.
            CheckpointError: There is no such model, or it is damaged.
        """
        given = {name: value for name, value in (additional_config or {}).items() if value is not None} | arg_dict
        found = cls(*_described(given))
        if not found.answering.exact:
            reading = found.answering.reading
            log.warning("log-likelihoods of the reading %s are lower bounds, so perplexities are upper bounds", reading)
        return found

    @override
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation given its context, and whether it is that of greedy decoding.

        Args:
            requests: With `args` (context, continuation).

        Returns:
            An answer a request, in nats.

        Raises:
            DataError: A continuation alone does not fit the context.
        """
        groups: dict[Hashable, list[Pair]] = {}
        for request in requests:
            groups.setdefault(_document(request), []).append(request.args[:2])
        found = dict(zip(groups, self.answering.log_likelihoods([*groups.values()]), strict=True))
        answers = [found[_document(request)][request.args[:2]] for request in requests]
        return self._noted("loglikelihood", requests, answers)

    @override
    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-likelihood of each text as a whole: the sum over its windows, each after what it overlaps.

        Args:
            requests: With `args` (text,).

        Returns:
            An answer a request, in nats.

        Raises:
            ConfigError: The stride is longer than the context.
        """
        return self._noted("loglikelihood_rolling", requests, self.answering.texts([each.args[0] for each in requests]))

    @override
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Writes after each context, up to the first of the strings that end an answer.

        A request that is asked several times gets as many texts, each with its own noise.

        Args:
            requests: With `args` (context, settings): `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k` and
                `top_p` are heeded.

        Returns:
            An answer a request.

        Raises:
            DataError: A task asks for more tokens than the context has.
        """
        times: Counter[Pair] = Counter()
        kinds: dict[str, tuple[Mapping[str, Any], dict[int, str]]] = {}
        numbers = []
        for request in requests:
            context, settings = request.args[:2]
            kind = json.dumps(settings, sort_keys=True, default=str)
            times[context, kind] += 1
            numbers.append(number_of("generate_until", (context, kind, times[context, kind])))
            kinds.setdefault(kind, (settings, {}))[1][numbers[-1]] = context
        found: dict[int, str] = {}
        for settings, contexts in kinds.values():
            asked = normalize_gen_kwargs(dict(settings), GENERATED)
            self.ignored |= asked.keys() - SAMPLED
            token = TokenChoice(float(asked["temperature"] if "temperature" in asked else asked["do_sample"]))
            token = replace(token, **{name: asked[name] for name in ("top_k", "top_p") if asked.get(name)})
            length = self.answering.how.length or int(asked["max_gen_toks"])
            found |= self.answering.written(contexts, token, length, asked["until"])
        if self.ignored:
            log.warning("settings that have no part in a diffusion sampler: %s", ", ".join(sorted(self.ignored)))
        return self._noted("generate_until", requests, [found[number] for number in numbers])

    @override
    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's template writes it.

        Args:
            chat_history: Messages `{role, content}`.
            add_generation_prompt: Whether an answer follows; otherwise the last message goes on.

        Returns:
            The text, with special tokens by their names.

        Raises:
            ConfigError: The tokenizer has no template.
            DataError: The template refuses the messages.
        """
        self.chat_template(True)
        try:
            written = self.answering.lm.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.answering.lm.layout.chat_template.told,
            )
        except Exception as error:  # a template is a program that may raise any type
            raise DataError(f"the chat template refuses the messages of a task: {one_line(error)}") from error
        return str(written)

    @override
    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template; from now on contexts are taken for what it writes.

        Args:
            chat_template: Whether one is used, or its name where there are several.

        Returns:
            The template.

        Raises:
            ConfigError: There is none of that name, or none at all.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str) or self._template is None:
            try:
                name = chat_template if isinstance(chat_template, str) else None
                self._template = self.answering.lm.tokenizer.get_chat_template(name)
            except ValueError as error:
                raise ConfigError(
                    "this tokenizer has no chat template: leave apply_chat_template out, or take another model"
                ) from error
        self.answering.chats = True
        return self._template

    @property
    def tokenizer_name(self) -> str:
        """What the tokenizer and its template are known by in the harness's cache of requests."""
        return f"dlm-{fingerprint(self.answering.lm.tokenizer)}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        answering, model = self.answering, self.answering.lm.model
        return {
            "model_num_parameters": model.num_parameters(),
            "model_dtype": str(model.dtype),
            "reading": answering.reading,
            "log_likelihoods": "exact" if answering.exact else "lower bounds, so that perplexities are upper bounds",
            "draws": None if answering.exact else answering.how.draws,
            "noise_seed": answering.how.seed,
            "shortened_contexts": {kind: count for kind, count in answering.shortened.items() if count},
        }

    @override
    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one behind the other."""
        found: Tensor = gather(tensor.to(self._team.device))
        return found

    @override
    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes at one of them; None at the others."""
        if self._world_size == 1:
            return [obj]
        found = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, found, dst=dst)
        return found

    @override
    def barrier(self) -> None:
        """Waits for the other processes."""
        self._team.wait_for_everyone()

    def _noted(self, kind: str, requests: Sequence[Any], answers: list[Any]) -> list[Any]:
        """Gives the answers to the harness's cache, and says what was cut."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        if count := self.answering.shortened[kind]:
            log.warning("%d contexts of %s were longer than the model's: their beginnings were cut", count, kind)
        return answers


def _described(given: dict[str, Any]) -> tuple[DiffusionLM, How]:
    """The model that arguments describe, and how it is asked."""
    own = {"path", "dtype", "load", "mask_token"}
    valid = own | {each.name for each in fields(How)} - {"sampler"}
    given.pop("max_batch_size", None)
    if str(given.get("batch_size")).isdecimal():  # the harness has it as text, as it may be auto there
        given["batch_size"] = int(given["batch_size"])
    device = given.pop("device", None)
    if unknown := [name for name in given if name not in valid]:
        raise ConfigError(f"model_args: there is no {unknown[0]!r}; valid: {', '.join(sorted(valid))}")
    if not given.get("path"):
        raise ConfigError("model_args: say which model by path=RUN: a run, a checkpoint folder or a Hub name")
    weights = {"dtype": given.get("dtype", "fp32"), "load": given.get("load")}
    for name, choices in WEIGHTS.items():
        if weights[name] not in choices:
            listed = ", ".join(str(choice) for choice in choices if choice)
            raise ConfigError(f"model_args: {name} is one of {listed}, got {weights[name]!r}")
    how = How(**{name: value for name, value in given.items() if name not in own})
    team = process_state()
    if team.num_processes > 1:
        device = team.device
    elif str(device).startswith("cuda") and not torch.cuda.is_available():
        device = None  # the harness asks for cuda:0 where nobody asked for anything
    mask = given.get("mask_token")
    return DiffusionLM.from_pretrained(str(given["path"]), device=device, mask_token=mask, **weights), how


def _document(request: Any) -> Hashable:
    """What the requests of one document have in common."""
    return request.args[0] if request.doc_id is None else (request.task_name, request.doc_id)


def main() -> None:
    """Runs lm_eval's own command line, in which such a model is called `dlm_model`."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model(NAME)(HarnessModel)
    try:
        cli_evaluate()
    except DlmError as error:
        sys.stderr.write(f"dlm: {one_line(error, limit=None)}\n")
        sys.exit(error.exit_code)
    leave_process_group()


if __name__ == "__main__":
    main()
