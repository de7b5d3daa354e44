"""The configuration of a run: one typed, frozen tree with its defaults and the combinations that it refuses.

A choice between classes (a tokenizer, a noise, a loss) is written `{name: ..., ...}`, or as the bare name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from dlm.diffusion.formulation import Formulation
from dlm.diffusion.levels import AnyLevels, Clip
from dlm.diffusion.noise import Absorbing, AnyNoise
from dlm.diffusion.readings import AnyReadings, Autoregressive, Joint, Masked
from dlm.diffusion.schedule import Linear, Schedule
from dlm.diffusion.weighting import AnyWeighting, CrossEntropy

Positive = Annotated[int, Field(gt=0)]

LONGEST_CHAIN = 1_000_000
"""The most steps of a chain; for more there is continuous time."""
FimOrder = Literal["psm", "spm"]
"""The order of a text that is rearranged for fill-in-the-middle."""
SHORTEST_REARRANGED = 8
"""The fewest tokens of a row whose texts are rearranged for fill-in-the-middle."""
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Separator:
    """Documents of text files that are parted by a line of its own.

    Attributes:
        separator: The line, such as `<|endoftext|>`; blanks around it do not count.
    """

    separator: str

    def __post_init__(self) -> None:
        if not self.separator.strip() or len(self.separator.splitlines()) > 1:
            raise ValueError(
                f"a separator is one line with a text in it, got {self.separator!r}; empty lines part a paragraph"
            )

    def parts(self, line: str) -> bool:
        """Whether a line is the separator."""
        return line.strip() == self.separator.strip()


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    Attributes:
        format: The name of a format in `dlm.data.formats`, such as `text`, `jsonl`, `hub` or `python-stdlib`.
        path: A file, a folder or a glob; for `hub` the dataset's name. `python-stdlib` has none.
        field: The column that holds the text; for `text` always `text`.
        split: Which split of a `saved` or `hub` dataset; files are all `train`.
        subset: The configuration name of a `hub` dataset, where it has several.
        documents: For `text`: one document a `file`, a `paragraph` or a `line`, or a `separator` between two.
        prompt: For supervised fine-tuning, the column of prompts; goes with `response`. Of several columns, such as
            Alpaca's `instruction` and `input`, those that are not empty are joined, with an empty line after each.
        response: The column of responses, which are learned given their prompts.
        messages: The column of chats, lists of `{role, content}` or of ShareGPT's `{from, value}`: each message of the
            assistant is learned, given those before it as the tokenizer's chat template formats them. One of
            `weight: 0` is not learned.
        skip_invalid: Whether chats that cannot be read, or that the chat template refuses, are left out and counted;
            otherwise the first of them ends the run.
    """

    format: str
    path: str | None = None
    field: str = "text"
    split: str | None = None
    subset: str | None = None
    documents: Literal["file", "paragraph", "line"] | Separator = "file"
    prompt: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    response: str | None = None
    messages: str | None = None
    skip_invalid: bool = False

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.response is None) or (self.messages and self.prompt):
            raise ValueError(
                "prompt and response are two columns that go together, or messages is one; "
                f"got prompt {self.prompt}, response {self.response}, messages {self.messages}"
            )
        if self.skip_invalid and not self.messages:
            raise ValueError("skip_invalid: it is for chats, and this source has no messages; leave it out")
        if self.response is not None and self.response in self.columns["prompt"]:
            raise ValueError(f"response: {self.response!r} is the prompt already; name another column")

    @property
    def supervised(self) -> bool:
        """Whether its documents are prompts with responses, or chats."""
        return self.prompt is not None or self.messages is not None

    @property
    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """The columns that are read, by the key that names them."""
        if self.messages is not None:
            return {"messages": (self.messages,)}
        if self.prompt is None or self.response is None:
            return {"field": (self.field,)}
        prompts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return {"prompt": prompts, "response": (self.response,)}


@dataclass(frozen=True)
class HeldOut:
    """The share of the training documents that is held out for validation when there is no validation source.

    Attributes:
        by: `documents` holds out whole documents, or chats, by a stable hash of their text; `tail` holds out the end
            of every document, which suits one long text.
        share: The share of the documents, or of the characters of each document.
    """

    by: Literal["documents", "tail"] = "documents"
    share: Share = 0.05


@dataclass(frozen=True)
class Data:
    """The training and validation text, and how it is cut into sequences.

    Attributes:
        train: The documents to train on.
        validation: The documents to validate on; null for `held_out` of `train`.
        held_out: The share of `train` that is held out when there is no `validation`.
        detokenize: The name of a corpus in `dlm.data.detokenize`, such as `lm1b`, whose published tokens are undone
            before anything is read of the training and validation text; null for the text as it is.
        length: Tokens in a sequence: the context length.
        packing: `pack` joins documents by an end-of-text token and cuts the stream into full sequences;
            `pad` keeps one document in each row, truncates it at `length`, and excludes the padding from attention
            and loss.
        attend: What a token of a packed row sees: the whole `row`, or its own `document` alone, in training and in the
            bound.
        context: The share of training sequences that keep a random prefix, suffix or both clean, outside the loss;
            for prompts and infilling. Validation and evaluation always bound the whole text.
        fim: The share of training texts that are rearranged for fill-in-the-middle, for autoregressive readings alone:
            their model then fills holes. Validation and evaluation read every text as it stands.
        fim_order: The order of a rearranged text: prefix, suffix, middle (`psm`), or suffix, prefix, middle (`spm`).
        tail: Whether a response is followed, in training, by a random number of end-of-text tokens that are learned,
            so that a text may end anywhere on a longer canvas.
        streaming: Read, tokenise and pack the training documents during training, for data that does not fit on the
            disk; a run then resumes from the dataset's own cursor, on the same number of processes.
        buffer: The number of rows in which a stream is shuffled.
    """

    train: Source
    validation: Source | None = None
    held_out: HeldOut = field(default_factory=HeldOut)
    detokenize: str | None = None
    length: Positive = 256
    packing: Literal["pack", "pad"] = "pack"
    attend: Literal["row", "document"] = "row"
    context: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    fim: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    fim_order: FimOrder = "psm"
    tail: bool = True
    streaming: bool = False
    buffer: Positive = 4096

    def __post_init__(self) -> None:
        if self.validation is not None and self.validation.supervised != self.train.supervised:
            raise ValueError(
                "validation: it needs a prompt and a response, or messages, if train has them, and only then"
            )
        if self.attend == "document" and self.packing == "pad":
            raise ValueError("attend: with packing pad a row holds one document already; set row, or packing to pack")
        if self.fim and self.length < SHORTEST_REARRANGED:
            raise ValueError(
                f"fim: a rearranged text has four tokens more, and length {self.length} leaves too few for the text; "
                f"set length to {SHORTEST_REARRANGED} or more"
            )
        if self.detokenize and self.streaming:
            raise ValueError("detokenize: a stream is learned as it is; set it to null, or streaming to false")
        if not self.train.supervised:
            return
        if self.detokenize:
            raise ValueError("detokenize: it is for plain text, and these have prompts; set it to null")
        if self.fim:
            raise ValueError("fim: it is for plain text, and responses stay behind their prompts; set it to 0")
        if self.streaming:
            raise ValueError("streaming: prompts and responses are read whole, one a row; set it to false")
        if self.packing != "pad":
            raise ValueError(f"packing: prompts and responses are one a row; set pad, got {self.packing}")
        if self.validation is None and self.held_out.by == "tail":
            raise ValueError("held_out.by: a response is held out whole; set documents, or name a validation source")


@dataclass(frozen=True)
class Bytes:
    """One token for each byte: needs no training and encodes any text."""

    name: Literal["bytes"] = "bytes"


@dataclass(frozen=True)
class Characters:
    """One token for each character that occurs in the data."""

    name: Literal["characters"] = "characters"


@dataclass(frozen=True)
class Bpe:
    """Byte-level byte-pair encoding, trained on the training documents.

    Attributes:
        size: The vocabulary size, special tokens included.
    """

    name: Literal["bpe"] = "bpe"
    size: Annotated[int, Field(ge=260)] = 4096


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer from a folder or from the Hub; missing mask, padding and end-of-text tokens are added.

    Attributes:
        path: The folder or the Hub name.
        mask_token: A token of its own that is the mask though it is not registered as one: its text, or its id as a
            number; null for the registered one, or else a new token.
    """

    path: str
    mask_token: str | int | None = None
    name: Literal["pretrained"] = "pretrained"


Tokenizer = Annotated[Bytes | Characters | Bpe | Pretrained, Field(discriminator="name")]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (2106.09685) of a frozen pretrained model; needs the extra `lora`.

    Attributes:
        rank: The rank of each adapter.
        alpha: An adapter's output is scaled by alpha/rank.
        targets: Names of the modules that get an adapter, such as q_proj; null for every linear layer but the head.
        dropout: The dropout rate of an adapter's input.
    """

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    dropout: Share = 0.0


@dataclass(frozen=True)
class Model:
    """The network that predicts the clean tokens.

    Attributes:
        init: `random` weights, or those of a `pretrained` model, which needs its own tokenizer.
        path: For `pretrained`: a folder or a Hub name of a model with a masked-LM or causal-LM head.
        architecture: Any HuggingFace `model_type` with a masked-LM or causal-LM head: qwen3, llama,
            modernbert, bert, ...; not used for a pretrained model.
        sizes: Keys of that architecture's own configuration, such as `hidden_size`; for a pretrained model the keys
            to change, such as `attention_dropout`.
        attention: `eager`, `sdpa`, another implementation that transformers knows, or `auto`, which
            chooses by device, precision and length.
        time_conditioning: Whether the network takes the time; `auto`: only if the noise turns tokens into other
            tokens.
        shift: Whether each prediction is read one position earlier, for a decoder that was trained to predict
            the next token.
        annealing: Steps in which a pretrained decoder's attention opens from causal to full; 0 for full at once.
        lora: Train only adapters and the embedding rows of new tokens; null to train every weight.
    """

    init: Literal["random", "pretrained"] = "random"
    path: str | None = None
    architecture: str = "qwen3"
    sizes: dict[str, Any] = field(default_factory=dict)
    attention: str = "auto"
    time_conditioning: Literal["auto"] | bool = "auto"
    shift: bool = False
    annealing: Annotated[int, Field(ge=0)] = 0
    lora: Lora | None = None


@dataclass(frozen=True)
class Time:
    """Continuous time, or a chain of steps.

    Attributes:
        steps: T, the number of steps of a chain with t = 1/T, 2/T, .. 1; null for continuous time.
    """

    steps: Annotated[int, Field(gt=0, le=LONGEST_CHAIN)] | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training objective: what is minimised, and at which noise levels.

    Attributes:
        loss: `ce`, the cross-entropy of the predicted tokens; `elbo`, the bound; `hybrid-ce`, the bound plus a little
            cross-entropy.
        levels: How often each noise level is trained on: `even`, all alike; `bell`, mostly near one half; `clip`, only
            those in an interval.
    """

    loss: Annotated[AnyWeighting, Field(discriminator="name")] = field(default_factory=CrossEntropy)
    levels: Annotated[AnyLevels, Field(discriminator="name")] = field(default_factory=Clip)

    def __post_init__(self) -> None:
        if self.loss.weighted and not self.levels.complete:
            raise ValueError(
                f"loss {self.loss.name} is a bound only if every noise level is trained on, and levels "
                f"{self.levels.name} leaves some out; set levels to even, or loss to ce"
            )


@dataclass(frozen=True)
class Optim:
    """The optimizer and its learning rate.

    Attributes:
        name: `muon` updates the hidden matrices with Muon and everything else with AdamW; `adamw` updates everything
            with AdamW.
        lr: AdamW's peak learning rate.
        muon_lr: Muon's peak learning rate.
        weight_decay: Decoupled weight decay of every matrix.
        betas: AdamW's moment decays.
        momentum: Muon's momentum.
        warmup: Steps of linear warm-up.
        decay: How the learning rate falls from the peak to zero after the warm-up.
        restart: The step after which warm-up and decay begin anew, over the steps that are left; 0 for a run that is
            not trained further.
        clip: Largest global gradient norm; null for no clipping.
    """

    name: Literal["muon", "adamw"] = "muon"
    lr: NonNegative = 3e-3
    muon_lr: NonNegative = 2e-2
    weight_decay: NonNegative = 0.0
    betas: tuple[Share, Share] = (0.9, 0.95)
    momentum: Share = 0.95
    warmup: Annotated[int, Field(ge=0)] = 100
    decay: Literal["linear", "cosine", "constant"] = "linear"
    restart: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(gt=0)] | None = 1.0


@dataclass(frozen=True)
class Train:
    """The training loop.

    Attributes:
        steps: Optimizer steps in the whole run.
        batch_size: Sequences in a step, over all processes.
        micro_batch_size: Sequences in one forward pass on one process; null for all of a process's share at once.
            Gradients are the same but for rounding, unless there is dropout, whose draws are made by micro-batch.
        precision: `bf16`, `fp16` (with a scaled loss), `fp32`, or `auto`: bf16 where the hardware computes in it, and
            fp16 on a GPU that does not.
        compile: Compile the network by torch.compile: half a minute at the start, faster steps after it; on CPUs it
            needs a C++ compiler.
        gradient_checkpointing: Keep only the activations at layer boundaries and recompute the rest: less memory,
            about a third more time.
        ema: Width of the exponential moving average relative to the steps taken so far; 0 for no average.
        log_every: Steps between two lines on the screen; the metrics file has every step.
        validate_every: Steps between two validations, each followed by a checkpoint.
        validate_sequences: How many sequences a validation scores.
        validate_draws: How many noisy copies of each sequence it scores.
        save_every: Steps between two further checkpoints; null for checkpoints at validations only.
        keep: How many checkpoints are kept besides `best` and `last`.
        sample_length: Tokens of the short sample after a validation; 0 for no sample.
        trackers: Accelerate trackers by name, such as tensorboard or wandb.
    """

    steps: Positive = 1000
    batch_size: Positive = 32
    micro_batch_size: Positive | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    ema: Share = 0.0
    log_every: Positive = 50
    validate_every: Positive = 200
    validate_sequences: Positive = 128
    validate_draws: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    save_every: Positive | None = None
    keep: Annotated[int, Field(ge=0)] = 1
    sample_length: Annotated[int, Field(ge=0)] = 64
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        data: The training and validation text.
        tokenizer: How text becomes ids.
        model: The network.
        noise: What a corrupted token becomes: absorbing, uniform or hybrid.
        schedule: alpha(t), the probability that a token is still clean.
        time: Continuous time, or a chain of steps.
        readings: What the network is trained to be read as: `masked`, `autoregressive`, `blocks` or `joint`.
        parameterization: What the network's softmax is. For absorbing noise `subs`; for the others `mixture`,
            p(x0 | xt), or `plug-in`, the prediction from all other tokens; `auto` takes `subs` or `plug-in`.
        objective: The training loss and its noise levels; evaluation always reports the true bound.
        optim: The optimizer.
        train: The training loop.
        seed: Determines everything random in the run; a whole number of 64 bits.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # reaches every dataclass below

    data: Data
    tokenizer: Tokenizer = field(default_factory=Bytes)
    model: Model = field(default_factory=Model)
    noise: Annotated[AnyNoise, Field(discriminator="name")] = field(default_factory=Absorbing)
    schedule: Annotated[Schedule, Field(discriminator="name")] = field(default_factory=Linear)
    time: Time = field(default_factory=Time)
    readings: Annotated[AnyReadings, Field(discriminator="name")] = field(default_factory=Masked)
    parameterization: Literal["auto", "subs", "mixture", "plug-in"] = "auto"
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0

    def __post_init__(self) -> None:
        model = self.model
        if (model.init == "pretrained") != (model.path is not None):
            raise ValueError(
                "model.path: a folder or a Hub name goes with model.init pretrained, "
                f"got init {model.init} and path {model.path}"
            )
        if model.init == "pretrained" and not isinstance(self.tokenizer, Pretrained):
            raise ValueError(
                f"tokenizer: a pretrained model needs its own, {{name: pretrained, path: {model.path}}}, "
                f"got {self.tokenizer.name}"
            )
        for key in ("annealing", "lora"):
            if getattr(model, key) and model.init == "random":
                raise ValueError(f"model.{key}: it is for a pretrained model; set model.init and model.path")
        if self.data.attend == "document":
            if model.shift:
                raise ValueError(
                    "data.attend: with model.shift the first token of a document would be predicted from the document "
                    "before it; set model.shift to false, or data.attend to row"
                )
            if not isinstance(self.readings, Masked):
                raise ValueError(
                    f"data.attend: with readings {self.readings.name} the memory before a document is read with it; "
                    "set data.attend to row"
                )
            if model.attention not in ("auto", "eager", "sdpa"):
                raise ValueError(
                    f"data.attend: document needs model.attention auto, eager or sdpa, got {model.attention}"
                )
        if self.data.fim and not isinstance(self.readings, Autoregressive):
            raise ValueError(
                f"data.fim: it is for readings autoregressive, whose model does not see what stands behind a hole; got "
                f"readings {self.readings.name}; set it to 0"
            )
        self._check_readings()
        self.formulation.check()

    def _check_readings(self) -> None:
        """Refuses what does not go with a clean memory."""
        readings, model = self.readings, self.model
        if isinstance(readings, Masked):
            return
        if model.annealing:
            raise ValueError(
                f"model.annealing: readings {readings.name} keeps the causal attention beside the open one; set it to 0"
            )
        if model.attention not in ("auto", "eager", "sdpa"):
            raise ValueError(
                f"readings: {readings.name} needs model.attention auto, eager or sdpa, got {model.attention}"
            )
        if self.data.context and not isinstance(readings, Joint):
            raise ValueError(
                f"data.context: readings {readings.name} always has the text before a token as its context, and never "
                "that behind; set it to 0"
            )
        if (longest := max(readings.blocks, default=1)) > self.data.length:
            raise ValueError(
                f"readings: a block of {longest} tokens is longer than data.length {self.data.length}; "
                "take smaller blocks"
            )

    @property
    def formulation(self) -> Formulation:
        """The mathematics that this run asks for."""
        randomises, asked = self.noise.randomises, self.model.time_conditioning
        auto: Literal["plug-in", "subs"] = "plug-in" if randomises else "subs"
        return Formulation(
            noise=self.noise,
            schedule=self.schedule,
            steps=self.time.steps,
            parameterization=auto if self.parameterization == "auto" else self.parameterization,
            timed=randomises if asked == "auto" else asked,
            shift=self.model.shift,
            readings=self.readings,
        )
