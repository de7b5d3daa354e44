"""Published diffusion models: what their own code computes, from their own files, without their code."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlm.cli.chat import Conversation
from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.unmask import Confidence, Entropy, Random, TokenChoice
from dlm.errors import CheckpointError, ConfigError, DlmError
from dlm.lm import DiffusionLM, Sampler
from dlm.model.locate import SIDECAR
from dlm.model.public import FAMILIES, REFUSED, find
from dlm.model.text import encode
from tests.support import public
from tests.support.adapted_runs import describe
from tests.support.fixtures import Refused
from tests.support.networks import ask
from tests.support.tiny_runs import train

Make = Callable[[Path], Path]
MAKERS = (public.llada, public.dream, public.a2d, public.open_dcoder, public.diffugpt)
FOLDERS = {"open_dcoder": "open-dcoder-0.5B"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    shelf = tmp_path_factory.mktemp("public")
    folders = {make.__name__: shelf / FOLDERS.get(make.__name__, make.__name__) for make in MAKERS}
    for make in MAKERS:
        folders[make.__name__].mkdir()
        make(folders[make.__name__])
    return folders


@pytest.fixture(scope="module")
def loaded(made: dict[str, Path]) -> dict[str, DiffusionLM]:
    return {name: DiffusionLM.from_pretrained(folder, dtype="fp32", device="cpu") for name, folder in made.items()}


def text(*shape: int) -> Tensor:
    """Random bytes."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(7))


def log_p(lm: DiffusionLM, x_BL: Tensor) -> Tensor:
    """What a model predicts at every position of a text."""
    with torch.inference_mode():
        return ask(lm.denoisers.scoring, x_BL, None, torch.ones_like(x_BL, dtype=torch.bool)).unflatten(0, x_BL.shape)


def allowed(lm: DiffusionLM, logits_BLV: Tensor) -> Tensor:
    """The log-probabilities that logits stand for, once no forbidden id is predicted."""
    return logits_BLV.index_fill(-1, torch.tensor(lm.process.vocabulary.forbidden), -torch.inf).log_softmax(-1)


def test_llada_computes_what_its_own_formulas_say(made: dict[str, Path], loaded: dict[str, DiffusionLM]) -> None:
    """In place, and after a begin of text that is no part of the canvas."""
    lm, x_BL = loaded["llada"], text(2, 12)
    own = load_file(made["llada"] / "model.safetensors")
    logits_BLV = public.llada_logits(own, torch.cat([torch.full((2, 1), 256), x_BL], 1), heads=2)[:, 1:]
    torch.testing.assert_close(log_p(lm, x_BL), allowed(lm, logits_BLV), atol=1e-5, rtol=0)


def test_dream_reads_predictions_one_row_earlier_and_the_first_from_itself(
    made: dict[str, Path], loaded: dict[str, DiffusionLM]
) -> None:
    x_BL = text(2, 12)
    for name, kind in (("dream", "qwen2"), ("open_dcoder", "qwen2")):
        lm = loaded[name]
        plain = type(lm.model)(lm.model.config).eval()
        plain.load_state_dict(load_file(made[name] / "model.safetensors"), strict=name == "dream")
        plain.tie_weights()
        assert plain.config.model_type == kind and plain.config.is_causal is False
        with torch.inference_mode():
            logits_BLV = plain(x_BL).logits
        shifted_BLV = torch.cat([logits_BLV[:, :1], logits_BLV[:, :-1]], 1)
        torch.testing.assert_close(log_p(lm, x_BL), allowed(lm, shifted_BLV), atol=1e-5, rtol=0)


def test_diffugpt_reads_one_row_earlier_after_an_end_of_text(loaded: dict[str, DiffusionLM]) -> None:
    lm, x_BL = loaded["diffugpt"], text(2, 12)
    assert lm.model.config.model_type == "gpt2"
    assert lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    with torch.inference_mode():
        logits_BLV = lm.model(torch.cat([torch.full((2, 1), 260), x_BL], 1)).logits[:, :-1]
    torch.testing.assert_close(log_p(lm, x_BL), allowed(lm, logits_BLV), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "family", "mask", "first", "ends", "shift", "context"),
    [
        ("llada", "LLaDA", 258, 256, (257, 259), False, 63),
        ("dream", "Dream", 259, None, (256, 258), True, 64),
        ("a2d", "A2D", 259, None, (258, 256), False, 64),
        ("open_dcoder", "Open-dCoder", 259, None, (256, 258), True, 64),
        ("diffugpt", "DiffuGPT", 259, 260, (260,), True, 63),
    ],
)
def test_each_is_used_as_its_publisher_uses_it(
    name: str,
    family: str,
    mask: int,
    first: int | None,
    ends: tuple[int, ...],
    shift: bool,
    context: int,
    loaded: dict[str, DiffusionLM],
) -> None:
    lm = loaded[name]
    known = lm.sidecar.family
    assert known is not None and known.name == family
    assert (lm.process.mask_id, lm.formulation.shift, lm.context) == (mask, shift, context)
    assert known.first_id(lm.tokenizer) == first
    assert (lm.tokenizer.eos_token_id, *known.end_ids(lm.tokenizer)) == ends
    assert lm.tokenizer.pad_token_id not in ends  # attention ignores the padding, and reads the end of a text
    assert lm.tokenizer.pad_token_id in lm.process.vocabulary.forbidden
    assert set(ends).isdisjoint(lm.process.vocabulary.forbidden)


def test_a_text_is_padded_without_changing_it(loaded: dict[str, DiffusionLM]) -> None:
    for lm in loaded.values():
        pad_id = lm.tokenizer.pad_token_id
        assert pad_id < lm.model.config.vocab_size
        x_BL = text(1, 6)
        padded_BL = torch.nn.functional.pad(x_BL, (0, 3), value=pad_id)
        torch.testing.assert_close(log_p(lm, padded_BL)[:, :6], log_p(lm, x_BL), atol=1e-5, rtol=0)


def test_a_mask_that_is_a_token_of_text_stays_one_in_texts(loaded: dict[str, DiffusionLM]) -> None:
    """DiffuGPT's mask is a word: in a text it is spelled by its letters, is not read as masked, and comes back."""
    lm = loaded["diffugpt"]
    assert lm.tokenizer.convert_ids_to_tokens(lm.process.mask_id) == "mask"
    assert encode(lm.tokenizer, ["mask"]) == [[*b"mask"]]
    found = lm.infill("a mask [MASK:2] unmasked")[0]
    assert found.text.startswith("a mask ") and found.text.endswith(" unmasked") and len(found.ids[0]) == 2


def test_an_answer_ends_at_the_end_of_its_turn(loaded: dict[str, DiffusionLM]) -> None:
    for name, end in (("llada", 259), ("dream", 258), ("a2d", 256)):
        lm = DiffusionLM(loaded[name].model, loaded[name].tokenizer, sidecar=loaded[name].sidecar, precision="fp32")
        x_BL = torch.tensor([[1, lm.process.mask_id]])
        wanted_BL = x_BL == lm.process.mask_id
        assert ask(lm.denoisers.sampling, x_BL, None, wanted_BL)[0, end] > -torch.inf
        assert ask(lm.denoisers.infilling, x_BL, None, wanted_BL)[0, end] == -torch.inf

        def ended(inputs: NetworkInput, end: int = end, size: int = lm.process.vocabulary.size) -> Tensor:
            place_N = inputs.wanted_BL.nonzero()[:, 1] - int(inputs.wanted_BL.shape[1] - 5)
            best_N = torch.where(place_N == 2, end, 65)
            return torch.nn.functional.one_hot(best_N, size).double().log()

        lm.denoisers.sampling = FunctionDenoiser(ended)
        assert [found.ids for found in lm.generate([{"role": "user", "content": "hi"}], length=5)] == [(65, 65)]
        assert [found.ids for found in lm.generate(length=5)] == [
            (65, 65, end, 65, 65)
        ]  # nothing ends without a prompt


@pytest.mark.parametrize(
    ("asked", "written", "why"), [(None, 5, "a greater --length allows more"), (7, 7, "--length allows no more")]
)
def test_an_answer_in_a_conversation_is_as_long_as_the_publishers_or_as_asked(
    loaded: dict[str, DiffusionLM], capsys: pytest.CaptureFixture[str], asked: int | None, written: int, why: str
) -> None:
    llada = loaded["llada"]
    assert llada.sidecar.family is not None
    sidecar = replace(llada.sidecar, family=replace(llada.sidecar.family, length=5))
    lm = DiffusionLM(llada.model, llada.tokenizer, sidecar=sidecar, precision="fp32")
    sure_V = torch.nn.functional.one_hot(torch.tensor(65), lm.process.vocabulary.size).double().log()
    lm.denoisers.sampling = FunctionDenoiser(lambda inputs: sure_V.expand(len(inputs.index_N), -1))
    conversation = Conversation(lm, Sampler(), asked, 0, [])
    assert conversation.answer("hi") == conversation.answer("and?") == "A" * written
    assert why in capsys.readouterr().err


def test_the_template_is_told_what_the_publisher_tells_it_and_begins_a_text_once(
    loaded: dict[str, DiffusionLM],
) -> None:
    chat = [{"role": "user", "content": "hi"}]
    rows = {name: lm.layout.canvas(chat, 1).ids for name, lm in loaded.items() if name != "diffugpt"}
    spell = {name: loaded[name].tokenizer.decode(ids[:-1]) for name, ids in rows.items()}
    assert spell["llada"] == "<|im_start|>hi<|im_end|>"  # the network reads the begin of text itself
    assert spell["dream"] == "<|endoftext|><|im_start|>hi<|im_end|>"
    assert spell["a2d"] == "<|im_start|>hi<|im_end|><think>"


def test_without_flags_a_model_writes_by_its_publishers_sampler(loaded: dict[str, DiffusionLM]) -> None:
    lm = loaded["llada"]
    own, other = (lm.generate("ab", length=40, seed=seed)[0].ids for seed in (1, 2))
    assert own == other  # greedy
    spelled = Sampler(order=Confidence(), token=TokenChoice(temperature=0.0), block_length=32)
    assert lm.generate("ab", length=40, sampler=spelled)[0].ids == own
    whole = Sampler(block_length=40)
    assert lm.generate("ab", length=40, sampler=whole)[0].ids != own
    warm = Sampler(token=TokenChoice())
    assert (
        lm.generate("ab", length=40, sampler=warm, seed=1)[0].ids
        != lm.generate("ab", length=40, sampler=warm, seed=2)[0].ids
    )
    orders = {name: family.order for name, family in ((each.name, each) for each in FAMILIES)}
    assert (orders["LLaDA"], orders["Dream"], orders["DiffuGPT"]) == (Confidence(), Entropy(), Random())


def test_what_is_saved_is_plain_and_used_alike(loaded: dict[str, DiffusionLM], tmp_path: Path) -> None:
    x_BL = text(1, 8)
    for name, lm in loaded.items():
        lm.save_pretrained(tmp_path / name)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        spell = AutoTokenizer.from_pretrained(tmp_path / name)
        with torch.inference_mode():
            torch.testing.assert_close(plain(x_BL).logits, lm.model(x_BL).logits, atol=1e-5, rtol=0)
        assert spell.mask_token_id == lm.process.mask_id
        again = DiffusionLM.from_pretrained(tmp_path / name, dtype="fp32", device="cpu")
        assert again.sidecar == lm.sidecar
        torch.testing.assert_close(log_p(again, x_BL), log_p(lm, x_BL), atol=1e-5, rtol=0)
        assert again.generate("ab", length=12) == lm.generate("ab", length=12)


def test_a_family_of_a_later_dlm_is_refused(loaded: dict[str, DiffusionLM], tmp_path: Path, refused: Refused) -> None:
    loaded["llada"].save_pretrained(tmp_path / "later")
    file = tmp_path / "later" / SIDECAR
    assert "format: 4" in file.read_text()  # an older dlm would leave the family out
    file.write_text(file.read_text().replace("family: LLaDA", "family: Unheard"))
    with refused(CheckpointError, SIDECAR, "Unheard", "LLaDA"):
        DiffusionLM.from_pretrained(tmp_path / "later")


def test_shards_are_read_and_a_missing_one_is_refused(
    tmp_path: Path, loaded: dict[str, DiffusionLM], refused: Refused
) -> None:
    (tmp_path / "shards").mkdir()
    folder = public.llada(tmp_path / "shards")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    x_BL = text(1, 8)
    assert torch.equal(
        log_p(DiffusionLM.from_pretrained(folder, dtype="fp32", device="cpu"), x_BL), log_p(loaded["llada"], x_BL)
    )
    (folder / "model-00002-of-00003.safetensors").unlink()
    with refused(CheckpointError, str(folder), "model-00002-of-00003.safetensors"):
        DiffusionLM.from_pretrained(folder)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: str(make.__name__))
def test_a_hub_name_loads_from_the_cache_without_network(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of a download by another program: no `dlm.yaml`, no optional file, and no note that it lacks them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "made").mkdir()
    name = f"owner/{FOLDERS.get(make.__name__, make.__name__)}"
    public.into_cache(make(tmp_path / "made"), name, tmp_path / "hub")
    lm = DiffusionLM.from_pretrained(name, dtype="fp32", device="cpu")
    assert lm.sidecar.family is not None
    assert len(lm.generate("ab", length=4, sampler=Sampler(token=TokenChoice()))) == 1


def test_in_the_cache_a_model_that_dlm_trained_needs_its_dlm_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_lm: DiffusionLM, refused: Refused
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny_lm.save_pretrained(tmp_path / "made")
    snapshot = public.into_cache(tmp_path / "made", "owner/tiny", tmp_path / "hub")
    assert DiffusionLM.from_pretrained("owner/tiny").sidecar == tiny_lm.sidecar
    (snapshot / SIDECAR).unlink()
    with refused(CheckpointError, "owner/tiny", SIDECAR, "network"):
        DiffusionLM.from_pretrained("owner/tiny")


@pytest.mark.parametrize(
    ("model_type", "architecture", "words"),
    [
        ("llada", "LLaDAMoEModelLM", ("LLaDA-MoE", "experts")),
        ("llada2_moe", "LLaDA2MoeModelLM", ("LLaDA2", "experts")),
        ("sdar_moe", "SDARMoeForCausalLM", ("SDAR", "experts")),
        ("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", ("Fast-dLLM v2", "one position earlier")),
        ("mdlm", "MDLM", ("MDLM", "DiT")),
        ("sedd", "SEDD", ("SEDD", "DiT")),
        ("bd3lm", "BD3LM", ("BD3-LM", "DiT")),
        ("brand-new", "BrandNewModel", ("BrandNewModel", "code of its own", "LLaDA, Dream, A2D")),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(
    model_type: str, architecture: str, words: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    tree = {"model_type": model_type, "architectures": [architecture], "auto_map": {"AutoModel": "modeling.X"}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with refused(CheckpointError, str(tmp_path), *words):
        DiffusionLM.from_pretrained(tmp_path)


def test_only_the_models_own_name_tells_it_apart(tmp_path: Path) -> None:
    """A plain Qwen2 in a folder of a folder called open-dcoder is no Open-dCoder, and a snapshot in the cache is."""
    plain = tmp_path / "open-dcoder" / "qwen"
    plain.mkdir(parents=True)
    public.open_dcoder(plain)
    assert find(str(plain)) is None
    snapshot = public.into_cache(plain, "fredzzp/open-dcoder-0.5B", tmp_path / "hub")
    found = find(str(snapshot))
    assert found is not None and found.name == "Open-dCoder"


def test_a_configuration_that_names_nothing_is_told_by_the_models_name(tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "sedd-small"
    folder.mkdir()
    (folder / "config.json").write_text('{"tokens": 50257, "graph": {"type": "absorb"}}')
    with refused(CheckpointError, "SEDD", "DiT"):
        DiffusionLM.from_pretrained(folder)


def test_no_row_hides_another() -> None:
    names = [*(family.name for family in FAMILIES), *(each.name for each in REFUSED)]
    assert len(set(names)) == len(names)
    assert all(pattern.count("(") <= 1 for family in FAMILIES for pattern in family.keys)


@pytest.mark.parametrize(
    ("key", "value"), [("alibi", True), ("include_bias", True), ("layer_norm_type", "low_precision")]
)
def test_a_variant_that_llama_does_not_compute_is_refused(
    key: str, value: object, tmp_path: Path, refused: Refused
) -> None:
    public.llada(tmp_path, **{key: value})
    with refused(CheckpointError, "LLaDA", key, repr(value)):
        DiffusionLM.from_pretrained(tmp_path)


def test_weights_that_are_pickles_are_refused(tmp_path: Path, refused: Refused) -> None:
    public.llada(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with refused(CheckpointError, str(tmp_path), "pickles", "safetensors"):
        DiffusionLM.from_pretrained(tmp_path)


def test_training_begins_from_them_as_they_are(made: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    keys = {"train": {"steps": 2, "validate_sequences": 4}}
    for name, shift in (("llada", False), ("dream", True), ("diffugpt", True)):
        (tmp_path / name).mkdir()
        wrong = describe(tmp_path / name, made[name], model={"shift": not shift}, **keys)
        with refused(ConfigError, "model.shift", f"set it to {str(shift).lower()}"):
            train(tmp_path / name / "wrong", wrong)
        closed = describe(tmp_path / name, made[name], model={"shift": shift, "annealing": 3}, **keys)
        with refused(ConfigError, "model.annealing", "set it to 0"):
            train(tmp_path / name / "closed", closed)
        run = train(tmp_path / name / "run", describe(tmp_path / name, made[name], model={"shift": shift}, **keys))
        lm = DiffusionLM.from_pretrained(run)
        assert lm.formulation.shift is shift and lm.sidecar.family is find(str(made[name]))
        assert lm.process.mask_id == DiffusionLM.from_pretrained(made[name]).process.mask_id
        assert lm.generate("ab", length=4)


def test_every_failure_is_the_users_to_mend() -> None:
    assert issubclass(CheckpointError, DlmError) and CheckpointError.exit_code == 2


def test_the_page_has_every_family_as_it_is() -> None:
    """The tables of the configurations' page have a row for each family, and every refused one is named."""
    page = (Path(__file__).parents[2] / "configs/README.md").read_text(encoding="utf-8")
    section = page.partition("\n## Published diffusion models\n")[2].partition("\n## ")[0]
    rows = {name: row for name, row in re.findall(r"^\| ([\w-]+) (\| .*)$", section, re.MULTILINE) if name != "family"}
    samplers = section.partition("| family | order |")[2]
    assert list(rows) == [family.name for family in FAMILIES]
    for family in FAMILIES:
        (row,) = re.findall(rf"^\| {family.name} \| (.*) \|$", samplers, re.MULTILINE)
        order, token, blocks, ends, longest = row.replace(r"\|", "|").split(" | ")
        warm = f"temperature {family.token.temperature}, top-p {family.token.top_p}"
        assert order == family.order.name
        kinds = {TokenChoice(temperature=0.0): "the likeliest", TokenChoice(): "temperature 1"}
        assert token == kinds.get(family.token, warm)
        its_own = f"its configuration's, `{family.blocks}`" if isinstance(family.blocks, str) else family.blocks
        assert blocks == str(its_own or family.block_length or "one")
        assert ends == ", ".join(["end of text", *(f"`{end}`" for end in family.ends)])
        assert longest == f"{family.context - (family.name == 'LLaDA'):,}"
    assert [each.name for each in REFUSED if each.name not in section] == []
